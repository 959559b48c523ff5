"""Adapting a recipe made for one number of processes to another."""

from __future__ import annotations

import logging
import math

from mask2former.config import CfgNode
from mask2former.errors import ConfigError

logger = logging.getLogger(__name__)


def scale_to_world_size(cfg: CfgNode, world_size: int) -> CfgNode:
    """Return ``cfg`` adapted to ``world_size`` processes, if REFERENCE_WORLD_SIZE says how many it was made for.

    Each process keeps its number of images: batch and learning rate grow with the processes, iterations shrink.

    Raises:
        ConfigError: the batch cannot be divided among the processes.
    """
    scaled = cfg.clone()
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference > 0 and reference != world_size:
        was_frozen = scaled.is_frozen()
        scaled.defrost()
        _scale(scaled, world_size / reference)
        scaled.SOLVER.REFERENCE_WORLD_SIZE = world_size
        if was_frozen:
            scaled.freeze()
    _check_batch(scaled, world_size)
    return scaled


def resolve_epochs(cfg: CfgNode, num_images: int) -> CfgNode:
    """Return ``cfg`` with SOLVER.MAX_EPOCHS converted to MAX_ITER, and then set to 0; STEPS keep their shares.

    Raises:
        ConfigError: SOLVER.MAX_EPOCHS is negative.
    """
    epochs, before = cfg.SOLVER.MAX_EPOCHS, cfg.SOLVER.MAX_ITER
    if epochs < 0:
        raise ConfigError(f"SOLVER.MAX_EPOCHS must not be negative, found {epochs}")
    if epochs == 0:
        return cfg
    resolved = cfg.clone()
    resolved.defrost()
    solver = resolved.SOLVER
    solver.MAX_ITER, solver.MAX_EPOCHS = math.ceil(epochs * num_images / max(solver.IMS_PER_BATCH, 1)), 0
    solver.STEPS = type(solver.STEPS)(round(step * solver.MAX_ITER / before) for step in solver.STEPS if step < before)
    logger.info(
        "SOLVER.MAX_EPOCHS: %d epochs of %d images / %d = %d iterations, steps %s",
        epochs,
        num_images,
        solver.IMS_PER_BATCH,
        solver.MAX_ITER,
        list(solver.STEPS),
    )
    if cfg.is_frozen():
        resolved.freeze()
    return resolved


def describe_scaling(before: CfgNode, after: CfgNode) -> str:
    """Return what changed, for the log; empty where nothing did."""
    if before.SOLVER.REFERENCE_WORLD_SIZE == after.SOLVER.REFERENCE_WORLD_SIZE:
        return ""
    keys = ("IMS_PER_BATCH", "BASE_LR", "MAX_ITER", "WARMUP_ITERS", "STEPS", "CHECKPOINT_PERIOD")
    changes = [f"SOLVER.{key} {before.SOLVER[key]} → {after.SOLVER[key]}" for key in keys]
    changes.append(f"TEST.EVAL_PERIOD {before.TEST.EVAL_PERIOD} → {after.TEST.EVAL_PERIOD}")
    return (
        f"scaled from {before.SOLVER.REFERENCE_WORLD_SIZE} to {after.SOLVER.REFERENCE_WORLD_SIZE} processes: "
        + ", ".join(changes)
    )


def _scale(cfg: CfgNode, scale: float) -> None:
    solver = cfg.SOLVER
    solver.IMS_PER_BATCH = max(round(solver.IMS_PER_BATCH * scale), 1)
    solver.BASE_LR = solver.BASE_LR * scale
    solver.MAX_ITER = round(solver.MAX_ITER / scale)
    solver.WARMUP_ITERS = round(solver.WARMUP_ITERS / scale)
    solver.STEPS = type(solver.STEPS)(round(step / scale) for step in solver.STEPS)
    solver.CHECKPOINT_PERIOD = round(solver.CHECKPOINT_PERIOD / scale)
    cfg.TEST.EVAL_PERIOD = round(cfg.TEST.EVAL_PERIOD / scale)


def _check_batch(cfg: CfgNode, world_size: int) -> None:
    images, parts = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION_STEPS
    if images < 1 or images % world_size:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is the batch of all processes together and must be a multiple of their number "
            f"{world_size}, found {images}"
        )
    if parts < 1 or parts > images // world_size:
        raise ConfigError(
            f"SOLVER.ACCUMULATION_STEPS must lie between 1 and the {images // world_size} images of a process, "
            f"found {parts}"
        )
