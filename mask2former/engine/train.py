"""A run from its configuration: training with everything around it, and evaluation alone."""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mask2former import distributed
from mask2former.checkpoint import load_state_dict, load_weights
from mask2former.config import CfgNode
from mask2former.engine import summary
from mask2former.engine.backbone_weights import load_backbone_weights
from mask2former.engine.checkpoint_folder import CheckpointFolder
from mask2former.engine.hooks import (
    BestCheckpoint,
    Evaluation,
    PeriodicCheckpoint,
    PeriodicMetrics,
    ProgressBar,
    Results,
)
from mask2former.engine.logging import setup_logging
from mask2former.engine.metrics import METRICS_FILE, ConsoleWriter, JsonWriter, MetricLog, TensorBoardWriter, set_aside
from mask2former.engine.optimizer import build_gradient_clipping, build_optimizer
from mask2former.engine.precision import Precision
from mask2former.engine.random_state import draw_seed, seed_everything, set_determinism
from mask2former.engine.scaling import describe_scaling, resolve_epochs, scale_to_world_size
from mask2former.engine.schedule import build_lr_scheduler
from mask2former.engine.trainer import Batch, Hook, Trainer
from mask2former.engine.training_state import restore_state
from mask2former.engine.zoo_expectations import expect_zoo_metrics
from mask2former.errors import ConfigError
from mask2former.files.atomic import write_text_atomic

BuildBatches = Callable[[CfgNode, int], Iterable[Batch]]  # config and first iteration → batches
Evaluate = Callable[[CfgNode, nn.Module], Results]

logger = logging.getLogger(__name__)


def train(cfg: CfgNode, *, resume: bool = False, mapper: Callable[..., Any] | None = None) -> Results:
    """Trains the model of ``cfg`` on its data, evaluates it, and returns the results (on the main process).

    Everything is written to ``cfg.OUTPUT_DIR``. ``resume`` goes on from the newest readable checkpoint there.
    ``mapper`` turns dataset dicts into training samples, in place of that of ``cfg``.

    Raises:
        InputError: configuration, data or checkpoint are wrong.
        NonFiniteError: a loss became infinite or not a number.
    """
    from mask2former.data import DatasetCatalog, build_train_loader
    from mask2former.data.loader import load_train_dicts
    from mask2former.data.own_data import register_own_data
    from mask2former.inference.test_time_augmentation import CopyMaker
    from mask2former.modeling import build_model

    register_own_data(cfg)
    if cfg.SOLVER.MAX_EPOCHS:
        setup_logging(cfg.OUTPUT_DIR, verbose=cfg.VERBOSE)
        cfg = resolve_epochs(cfg, len(load_train_dicts(cfg)))

    def build_batches(cfg: CfgNode, start_iter: int) -> Iterable[Batch]:
        for name in cfg.DATASETS.TEST if distributed.is_main() else ():
            DatasetCatalog.get(name)  # what is wrong with it is better known before training than after
        if cfg.TEST.AUG.ENABLED:
            CopyMaker.from_config(cfg)  # likewise
        return build_train_loader(cfg, mapper=mapper, start_iter=start_iter)

    return fit(cfg, build_model=build_model, build_batches=build_batches, evaluate=evaluate, resume=resume)


def fit(
    cfg: CfgNode,
    *,
    build_model: Callable[[CfgNode], nn.Module],
    build_batches: BuildBatches,
    evaluate: Evaluate | None = None,
    resume: bool = False,
) -> Results:
    """As ``train``, with any model (a list of samples to losses by name), data and evaluation."""
    folder = CheckpointFolder(cfg.OUTPUT_DIR, max_to_keep=cfg.SOLVER.MAX_TO_KEEP)
    with distributed.process_group(cfg.MODEL.DEVICE):
        cfg, checkpoint = _begin(cfg, folder, resume=resume)
        model = build_model(cfg)
        if distributed.is_main():
            logger.info("%s", summary.describe_model(cfg, model))
        if checkpoint is None:
            _load_initial_weights(cfg, model)
        batches = build_batches(cfg, _first_batch(cfg, checkpoint))
        _begin_files(cfg, folder, is_new=checkpoint is None)
        evaluate_model = None if evaluate is None or not cfg.DATASETS.TEST else functools.partial(evaluate, cfg, model)
        start_iter = 0 if checkpoint is None else int(checkpoint[1]["iteration"]) + 1
        quick_evaluation = None if evaluate is None else functools.partial(evaluate, _while_training(cfg), model)
        hooks, evaluation = _build_hooks(cfg, folder, evaluate_model, quick_evaluation, start_iter=start_iter)
        trainer = _build_trainer(cfg, model, batches, hooks)
        seed_everything(cfg.SEED + distributed.get_rank())
        if checkpoint is not None:
            restore_state(trainer, checkpoint[1], source=checkpoint[0])
        del checkpoint  # as model and optimiser together
        trainer.train()
        return evaluation.results if evaluation is not None else {}


def evaluate(cfg: CfgNode, model: nn.Module) -> Results:
    """Results on each of ``cfg.DATASETS.TEST``: task to metric to value; with several datasets, by dataset first.

    With ``cfg.TEST.AUG.ENABLED`` those with test-time augmentation follow, under the same names and ``_TTA``. On other
    processes than the main one the results are empty.

    Raises:
        InputError: a dataset is missing or wrong, or results differ from ``cfg.TEST.EXPECTED_RESULTS``.
    """
    from mask2former.evaluation import verify_results
    from mask2former.inference.test_time_augmentation import with_test_time_augmentation

    if not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST is empty: there is nothing to evaluate on")
    augmented = with_test_time_augmentation(cfg, model) if cfg.TEST.AUG.ENABLED else None
    logger.info("%s", summary.describe_tasks(cfg))
    results = _evaluate_datasets(cfg, model, folder="inference")
    if augmented is not None:
        logger.info("with test-time augmentation, %s", augmented.copy_maker.describe())
        added = _evaluate_datasets(cfg, augmented, folder="inference_TTA")
        results = {**results, **{f"{name}_TTA": metrics for name, metrics in added.items()}}
    if distributed.is_main():
        logger.info("results on %s\n%s", ", ".join(cfg.DATASETS.TEST), summary.describe_results(results))
        verify_results(expect_zoo_metrics(cfg, results), results)
    return results


def _evaluate_datasets(cfg: CfgNode, model: nn.Module, *, folder: str) -> dict[str, Any]:
    """Results by task, or with several datasets by dataset; what evaluators write goes below ``folder``."""
    from mask2former.data import build_test_loader
    from mask2former.evaluation import build_evaluator, inference_on_dataset

    results: dict[str, Any] = {}
    for name in cfg.DATASETS.TEST:
        loader = build_test_loader(cfg, name)  # before the evaluator, which reads the metadata that this registers
        evaluator = build_evaluator(cfg, name, str(Path(cfg.OUTPUT_DIR) / folder / name))
        results[name] = inference_on_dataset(model, loader, evaluator) or {}
    return results if len(results) > 1 else dict(next(iter(results.values())))


def evaluate_only(cfg: CfgNode, *, resume: bool = False) -> Results:
    """Evaluates the weights ``cfg.MODEL.WEIGHTS``, or with ``resume`` the newest checkpoint in ``cfg.OUTPUT_DIR``.

    Raises:
        InputError: configuration, data or checkpoint are wrong, or results are not the expected ones.
    """
    from mask2former.data.own_data import register_own_data
    from mask2former.modeling import build_model

    register_own_data(cfg)
    with distributed.process_group(cfg.MODEL.DEVICE):
        setup_logging(cfg.OUTPUT_DIR, verbose=cfg.VERBOSE)
        _log_environment()
        model = build_model(cfg)
        logger.info("%s", summary.describe_model(cfg, model))
        newest = CheckpointFolder(cfg.OUTPUT_DIR).load_newest() if resume else None
        if newest is not None:
            path, state = newest
            logger.info("%s", load_state_dict(model, state["model"], source=str(path)).format())
        else:
            _load_initial_weights(cfg, model)
        return evaluate(cfg, model)


def _begin(cfg: CfgNode, folder: CheckpointFolder, *, resume: bool) -> tuple[CfgNode, tuple[Path, Any] | None]:
    """The resolved configuration, written down, and the checkpoint to go on from."""
    setup_logging(cfg.OUTPUT_DIR, verbose=cfg.VERBOSE)
    _log_environment()
    scaled = scale_to_world_size(cfg, distributed.get_world_size())
    if message := describe_scaling(cfg, scaled):
        logger.info("%s", message)
    checkpoint = _find_checkpoint(folder) if resume else None
    scaled.defrost()
    if scaled.SEED < 0:
        drawn = checkpoint[1].get("seed") if checkpoint is not None else None
        scaled.SEED = distributed.broadcast(draw_seed() if drawn is None else int(drawn))
        logger.info("SEED is negative: %s %d", "drawn at random:" if drawn is None else "resumed:", scaled.SEED)
    scaled.freeze()
    set_determinism(scaled.DETERMINISTIC, benchmark=scaled.CUDNN_BENCHMARK)
    seed_everything(scaled.SEED)
    return scaled, checkpoint


def _begin_files(cfg: CfgNode, folder: CheckpointFolder, *, is_new: bool) -> None:
    """Once nothing can be wrong with the inputs any more: what an earlier run left is set aside, not overwritten."""
    if not distributed.is_main():
        return
    if is_new:
        folder.begin_run()
        set_aside(folder.directory / METRICS_FILE)
    write_text_atomic(cfg.dump(), folder.directory / "config.yaml")
    logger.info("configuration written to %s", folder.directory / "config.yaml")


def _find_checkpoint(folder: CheckpointFolder) -> tuple[Path, Any] | None:
    """The main process chooses, so that a file that tears in between cannot divide the processes."""
    newest = folder.load_newest() if distributed.is_main() else None
    if distributed.get_world_size() > 1:
        path = distributed.broadcast(None if newest is None else newest[0])
        if path is not None and newest is None:
            from mask2former.checkpoint import load_state

            newest = path, load_state(path)
    if newest is None:
        logger.info("--resume: no checkpoint in %s, the run starts from the beginning", folder.directory)
    return newest


def _first_batch(cfg: CfgNode, checkpoint: tuple[Path, Any] | None) -> int:
    """Where in the order of samples to begin, in batches: the images seen count, should the batch have another size."""
    images = 0 if checkpoint is None else int(checkpoint[1].get("images_seen", 0))
    return images // cfg.SOLVER.IMS_PER_BATCH


def _load_initial_weights(cfg: CfgNode, model: nn.Module) -> None:
    load_backbone_weights(cfg, model)
    if cfg.MODEL.WEIGHTS:
        load_weights(model, cfg.MODEL.WEIGHTS, resize_queries=cfg.MODEL.MASK_FORMER.RESIZE_QUERIES)
    else:
        logger.info("MODEL.WEIGHTS is empty: the model starts from random weights")


def _while_training(cfg: CfgNode) -> CfgNode:
    """The config of evaluations between steps: without what costs many times as much, and without its expectations."""
    if not cfg.TEST.AUG.ENABLED:
        return cfg
    quick = cfg.clone()
    quick.defrost()
    quick.TEST.AUG.ENABLED = False
    quick.TEST.EXPECTED_RESULTS, quick.TEST.EXPECTED_ZOO = [], ""
    quick.freeze()
    return quick


def _build_hooks(
    cfg: CfgNode,
    folder: CheckpointFolder,
    evaluate: Callable[[], Results] | None,
    evaluate_quickly: Callable[[], Results] | None,
    *,
    start_iter: int,
) -> tuple[list[Hook], Evaluation | None]:
    log = MetricLog(_build_writers(cfg, start_iter=start_iter) if distributed.is_main() else [])
    hooks: list[Hook] = [
        PeriodicMetrics(log, period=cfg.SOLVER.LOG_PERIOD),
        PeriodicCheckpoint(
            folder,
            period=cfg.SOLVER.CHECKPOINT_PERIOD,
            seed=cfg.SEED,
            images_per_step=cfg.SOLVER.IMS_PER_BATCH,
        ),
    ]
    evaluation = None
    if evaluate is not None:
        metric = cfg.TEST.BEST_METRIC
        best = BestCheckpoint(folder, metric=metric, resume=start_iter > 0) if metric else None
        evaluation = Evaluation(
            evaluate_quickly or evaluate, log, period=cfg.TEST.EVAL_PERIOD, evaluate_last=evaluate, on_results=best
        )
        hooks.append(evaluation)
    if distributed.is_main() and sys.stderr.isatty():
        hooks.append(ProgressBar())
    return hooks, evaluation


def _build_writers(cfg: CfgNode, *, start_iter: int) -> list[Any]:
    directory = Path(cfg.OUTPUT_DIR)
    return [
        ConsoleWriter(cfg.SOLVER.MAX_ITER),
        JsonWriter(directory / METRICS_FILE, start_iter=start_iter),
        TensorBoardWriter(directory, start_iter=start_iter),
    ]


def _build_trainer(cfg: CfgNode, model: nn.Module, batches: Iterable[Batch], hooks: list[Hook]) -> Trainer:
    device = next(model.parameters()).device
    optimizer = build_optimizer(cfg, model)
    precision = Precision.from_config(cfg, device.type)
    world_size = distributed.get_world_size()
    logger.info(
        "%s",
        summary.describe_schedule(cfg, world_size=world_size, precision=precision.describe(), device=device.type),
    )
    return Trainer(
        _average_gradients(model, device) if world_size > 1 else model,
        optimizer,
        batches=batches,
        max_iter=cfg.SOLVER.MAX_ITER,
        scheduler=build_lr_scheduler(cfg, optimizer),
        precision=precision,
        clip_gradients=build_gradient_clipping(cfg),
        accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
        nonfinite=cfg.SOLVER.NONFINITE,
        hooks=hooks,
    )


def _average_gradients(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    with warnings.catch_warnings():
        # Buffers do not differ between processes: sending the many of frozen norms at every step would be waste. The
        # option is to be replaced by one that torch does not have yet.
        warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
        return DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )


def _log_environment() -> None:
    from mask2former import __version__
    from mask2former.ops import kernel_status

    logger.info(
        "mask2former %s, torch %s, Python %s, %d threads",
        __version__,
        torch.__version__,
        sys.version.split()[0],
        torch.get_num_threads(),
    )
    logger.info("%s", kernel_status())
