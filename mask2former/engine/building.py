"""Build the parts of a training run: initial weights of model and backbone, metric writers, hooks, the trainer."""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mask2former import distributed
from mask2former.checkpoint import LoadReport, load_state, load_state_dict, load_weights
from mask2former.checkpoint.loading import find_weights
from mask2former.config import CfgNode, build_from_config
from mask2former.config.merging import FaultCollector
from mask2former.data.presets import build_test_augmentations, build_train_augmentations, preset_of
from mask2former.engine.hooks import (
    HOOK_REGISTRY,
    WRITER_REGISTRY,
    BestCheckpoint,
    Evaluation,
    EvaluationRecord,
    PeriodicCheckpoint,
    PeriodicMetrics,
    ProgressBar,
    Results,
)
from mask2former.engine.logging import describe_schedule
from mask2former.engine.metrics import (
    METRICS_FILE,
    ConsoleWriter,
    JsonWriter,
    MetricLog,
    MetricWriter,
    TensorBoardWriter,
)
from mask2former.engine.optimizer import build_gradient_clipping, build_optimizer, optimizer_name
from mask2former.engine.precision import Precision
from mask2former.engine.run import Run
from mask2former.engine.schedule import build_lr_scheduler
from mask2former.engine.trainer import Batch, Hook, Trainer
from mask2former.errors import CheckpointError, ConfigError
from mask2former.evaluation.build import EVALUATOR_REGISTRY
from mask2former.modeling.backbone import TimmBackbone
from mask2former.structures.tasks import test_sets

logger = logging.getLogger(__name__)


def load_backbone_weights(cfg: CfgNode, model: nn.Module) -> LoadReport | None:
    """Read the file ``cfg.MODEL.TIMM.WEIGHTS`` into the model's timm backbone and logs what matched.

    Without a file it does nothing.

    Raises:
        ConfigError: the model has no timm backbone.
        CheckpointError: the file cannot be read safely, or holds weights of another network.
    """
    path = cfg.MODEL.TIMM.WEIGHTS
    if not path:
        return None
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, TimmBackbone):
        raise ConfigError(
            f"MODEL.TIMM.WEIGHTS: expected MODEL.BACKBONE.NAME build_timm_backbone, found {cfg.MODEL.BACKBONE.NAME}"
        )
    weights = find_weights(load_state(path))
    try:
        adapted = backbone.adapt_weights(weights)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    report = load_state_dict(backbone, adapted, source=str(path))
    logger.log(logging.INFO if report.is_complete else logging.WARNING, "%s", report.format())
    return report


Evaluate = Callable[[CfgNode, nn.Module], Results]


def find_training_faults(cfg: CfgNode) -> list[str]:
    """Return a line for each value of ``SOLVER``, ``INPUT`` and ``TEST`` that training would refuse later."""
    collector = FaultCollector()
    attempt = collector.attempt
    attempt(optimizer_name, cfg)
    attempt(build_gradient_clipping, cfg)
    attempt(build_lr_scheduler, cfg, torch.optim.SGD([torch.zeros(1)], lr=1.0))
    attempt(Precision.from_config, cfg, "cpu")
    preset = attempt(preset_of, cfg)
    if preset is not None:
        attempt(build_train_augmentations, cfg, preset, ignore_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
    attempt(build_test_augmentations, cfg)
    for registry, names in (
        (HOOK_REGISTRY, cfg.SOLVER.HOOKS),
        (WRITER_REGISTRY, cfg.SOLVER.WRITERS),
        (EVALUATOR_REGISTRY, cfg.TEST.EVALUATORS),
    ):
        for name in names:
            attempt(registry.lookup, name)
    return collector.faults


def load_initial_weights(cfg: CfgNode, model: nn.Module) -> None:
    """Load the weights of the backbone alone, then those of ``MODEL.WEIGHTS``.

    Raises:
        CheckpointError: a file cannot be read, or is of another model.
    """
    load_backbone_weights(cfg, model)
    if cfg.MODEL.WEIGHTS:
        load_weights(model, cfg.MODEL.WEIGHTS, resize_queries=cfg.MODEL.MASK_FORMER.RESIZE_QUERIES)
    else:
        logger.info("MODEL.WEIGHTS is empty: the model starts from random weights")


def build_log(run: Run, writers: Sequence[MetricWriter] = ()) -> MetricLog:
    """Return the log that metrics go to: console, files, the writers of ``SOLVER.WRITERS``, then ``writers``.

    Only the main process writes.

    Raises:
        ConfigError: a name is not registered.
    """
    named = [WRITER_REGISTRY.lookup(name) for name in run.cfg.SOLVER.WRITERS]
    if not distributed.is_main():
        return MetricLog([])
    directory = Path(run.cfg.OUTPUT_DIR)
    ours: list[MetricWriter] = [
        ConsoleWriter(run.cfg.SOLVER.MAX_ITER),
        JsonWriter(directory / METRICS_FILE, start_iter=run.start_iter),
        TensorBoardWriter(directory, start_iter=run.start_iter),
    ]
    return MetricLog([*ours, *(build_from_config(writer, run.cfg) for writer in named), *writers])


def build_hooks(run: Run, log: MetricLog, *, evaluation: Evaluation | None, others: Sequence[Hook] = ()) -> list[Hook]:
    """Return all hooks in their order (see ``engine.hooks``); those of ``SOLVER.HOOKS`` come before ``others``.

    Raises:
        ConfigError: a name is not registered.
    """
    cfg = run.cfg
    hooks: list[Hook] = [
        PeriodicMetrics(log, period=cfg.SOLVER.LOG_PERIOD),
        *(build_from_config(HOOK_REGISTRY.lookup(name), cfg) for name in cfg.SOLVER.HOOKS),
        *others,
        PeriodicCheckpoint(
            run.folder,
            period=cfg.SOLVER.CHECKPOINT_PERIOD,
            seed=cfg.SEED,
            images_per_step=cfg.SOLVER.IMS_PER_BATCH,
        ),
    ]
    if evaluation is not None:
        hooks.append(evaluation)
    if distributed.is_main() and sys.stderr.isatty():
        hooks.append(ProgressBar())
    return hooks


def build_evaluation(run: Run, model: nn.Module, log: MetricLog, evaluate: Evaluate | None) -> Evaluation | None:
    """Return the hook that evaluates and keeps the best weights; None without test data."""
    cfg = run.cfg
    if evaluate is None or not test_sets(cfg):
        return None
    metric = cfg.TEST.BEST_METRIC
    return Evaluation(
        functools.partial(evaluate, _while_training(cfg), model),
        log,
        period=cfg.TEST.EVAL_PERIOD,
        evaluate_last=functools.partial(evaluate, cfg, model),
        on_results=BestCheckpoint(run.folder, metric=metric, resume=run.start_iter > 0) if metric else None,
        record=EvaluationRecord(Path(cfg.OUTPUT_DIR), cfg),
    )


def build_trainer(
    cfg: CfgNode, model: nn.Module, batches: Iterable[Batch], *, hooks: Sequence[Hook], log: MetricLog
) -> Trainer:
    """Return the trainer with optimiser, schedule and precision of ``cfg``.

    Raises:
        ConfigError: a value of ``SOLVER`` is wrong.
    """
    device = next(model.parameters()).device
    optimizer = build_optimizer(cfg, model)
    precision = Precision.from_config(cfg, device.type)
    world_size = distributed.get_world_size()
    logger.info(
        "%s",
        describe_schedule(cfg, world_size=world_size, precision=precision.describe(), device=device.type),
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
        log=log,
    )


def _while_training(cfg: CfgNode) -> CfgNode:
    """Return the config of evaluations between steps: without test-time augmentation and expected results."""
    if not cfg.TEST.AUG.ENABLED:
        return cfg
    quick = cfg.clone()
    quick.defrost()
    quick.TEST.AUG.ENABLED = False
    quick.TEST.EXPECTED_RESULTS, quick.TEST.EXPECTED_ZOO = [], ""
    quick.freeze()
    return quick


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
