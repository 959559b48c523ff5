"""Train from a config, optionally with parts of your own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn

from mask2former import build_model, distributed
from mask2former.config import CfgNode
from mask2former.config.merging import format_faults
from mask2former.data import build_train_loader
from mask2former.data.loader import Mapper, named_worker_failures
from mask2former.data.own_data import register_own_data
from mask2former.data.training_sets import load_train_dicts
from mask2former.engine.building import (
    Evaluate,
    build_evaluation,
    build_hooks,
    build_log,
    build_trainer,
    find_training_faults,
    load_initial_weights,
)
from mask2former.engine.channels import settle_channels
from mask2former.engine.evaluating import TestSets
from mask2former.engine.hooks import Results
from mask2former.engine.logging import describe_model, setup_logging
from mask2former.engine.metrics import MetricWriter
from mask2former.engine.run import begin_files, begin_run, run_folder
from mask2former.engine.scaling import resolve_epochs
from mask2former.engine.trainer import Batch, Hook
from mask2former.engine.training_state import restore_state, seed_everything
from mask2former.errors import ConfigError
from mask2former.evaluation import BuildEvaluator
from mask2former.modeling.meta_arch.assembly import find_model_faults
from mask2former.structures.tasks import test_sets as configured_sets

BuildBatches = Callable[[CfgNode, int], Iterable[Batch]]  # config and first batch → batches

logger = logging.getLogger(__name__)


def train(
    cfg: CfgNode,
    *,
    resume: bool = False,
    mapper: Mapper | None = None,
    evaluators: Sequence[BuildEvaluator] = (),
    hooks: Sequence[Hook] = (),
    writers: Sequence[MetricWriter] = (),
) -> Results:
    """Train the model of ``cfg`` on its data, evaluate it, and return the results (on the main process).

    Everything is written to ``cfg.OUTPUT_DIR``.

    Args:
        cfg: the config.
        resume: continue from the newest readable checkpoint in the output folder.
        mapper: turns dataset dicts into training samples, instead of that of ``cfg``.
        evaluators: process each test set in addition to its own evaluators.
        hooks: run after those that ``cfg`` names.
        writers: receive metrics after those that ``cfg`` names.

    Raises:
        InputError: config, data or checkpoint are wrong.
        NonFiniteError: a loss became infinite or not a number.
    """
    cfg = _settled(cfg)
    test_sets = TestSets(evaluators)

    def build_batches(cfg: CfgNode, first_batch: int) -> Iterable[Batch]:
        if configured_sets(cfg):
            test_sets.prepare(cfg)
        return build_train_loader(cfg, mapper=mapper, start_iter=first_batch)

    parts: dict[str, Any] = {"build_model": build_model, "build_batches": build_batches, "evaluate": test_sets}
    return fit(cfg, **parts, resume=resume, hooks=hooks, writers=writers)


def _settled(cfg: CfgNode) -> CfgNode:
    """Check ``cfg``, register its own data, and set what follows from data: iterations of epochs, channels."""
    faults = find_training_faults(cfg)
    if faults:
        raise ConfigError(format_faults([*find_model_faults(cfg), *faults]))
    register_own_data(cfg)
    if cfg.SOLVER.MAX_EPOCHS:
        setup_logging(cfg.OUTPUT_DIR, verbose=cfg.VERBOSE)
        cfg = resolve_epochs(cfg, len(load_train_dicts(cfg)))
    if cfg.INPUT.CHANNELS and len(cfg.MODEL.PIXEL_MEAN) != cfg.INPUT.CHANNELS:
        cfg = _with_measured_channels(cfg)
    return cfg


def _with_measured_channels(cfg: CfgNode) -> CfgNode:
    setup_logging(cfg.OUTPUT_DIR, verbose=cfg.VERBOSE)
    records = load_train_dicts(cfg)
    files = [name for record in records for name in record.get("file_names", [record.get("file_name")])]
    return distributed.on_main(lambda: settle_channels(cfg, files, is_known=False))


def fit(
    cfg: CfgNode,
    *,
    build_model: Callable[[CfgNode], nn.Module],
    build_batches: BuildBatches,
    evaluate: Evaluate | None = None,
    resume: bool = False,
    hooks: Sequence[Hook] = (),
    writers: Sequence[MetricWriter] = (),
) -> Results:
    """Train as ``train`` does, with any model (from a list of samples to losses by name), data and evaluation."""
    with distributed.process_group(cfg.MODEL.DEVICE), run_folder(cfg), named_worker_failures():
        run = begin_run(cfg, resume=resume)
        model = build_model(run.cfg)
        if distributed.is_main():
            logger.info("%s", describe_model(run.cfg, model))
        if run.checkpoint is None:
            load_initial_weights(run.cfg, model)
        batches = build_batches(run.cfg, run.first_batch)
        begin_files(run)
        log = build_log(run, writers)
        evaluation = build_evaluation(run, model, log, evaluate)
        all_hooks = build_hooks(run, log, evaluation=evaluation, others=hooks)
        trainer = build_trainer(run.cfg, model, batches, hooks=all_hooks, log=log)
        seed_everything(run.cfg.SEED + distributed.get_rank())
        if run.checkpoint is not None:
            path, state = run.checkpoint
            restore_state(trainer, state, source=path)
            del state
        run.checkpoint = None  # as large as model and optimiser together
        trainer.train()
        return evaluation.results if evaluation is not None else {}
