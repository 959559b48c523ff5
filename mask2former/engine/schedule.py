"""Learning rate schedules: a factor of the base rate, in closed form of the iteration.

The closed form makes resuming exact: the rate at an iteration does not depend on how the run came there.
"""

from __future__ import annotations

import bisect
import logging
import math
from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR

from mask2former.config import CfgNode
from mask2former.errors import ConfigError

Factor = Callable[[int], float]


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LambdaLR:
    """Return the schedule ``cfg.SOLVER.LR_SCHEDULER_NAME``, to be stepped after every iteration.

    Raises:
        ConfigError: an unknown schedule or warm-up method, or impossible steps.
    """
    build = _SCHEDULES.get(cfg.SOLVER.LR_SCHEDULER_NAME)
    if build is None:
        known = ", ".join(_SCHEDULES)
        raise ConfigError(f"SOLVER.LR_SCHEDULER_NAME must be one of {known}, found {cfg.SOLVER.LR_SCHEDULER_NAME!r}")
    return LambdaLR(optimizer, build(cfg))


def build_multi_step_factor(cfg: CfgNode) -> Factor:
    """Return a factor that is multiplied by GAMMA at each of STEPS."""
    steps = [int(step) for step in cfg.SOLVER.STEPS]
    if steps != sorted(steps):
        raise ConfigError(f"SOLVER.STEPS must increase, found {steps}")
    if steps and steps[-1] >= cfg.SOLVER.MAX_ITER:
        logging.getLogger(__name__).warning(
            "SOLVER.STEPS %s: those from SOLVER.MAX_ITER %d on have no effect", steps, cfg.SOLVER.MAX_ITER
        )
    gamma = cfg.SOLVER.GAMMA
    return _ramp_to(lambda iteration: gamma ** bisect.bisect_right(steps, iteration), cfg)


def build_cosine_factor(cfg: CfgNode) -> Factor:
    """Return a factor that falls as half a cosine from 1 to BASE_LR_END / BASE_LR."""
    max_iter = _max_iter(cfg)
    end = cfg.SOLVER.BASE_LR_END / cfg.SOLVER.BASE_LR if cfg.SOLVER.BASE_LR else 0.0
    return _ramp_to(lambda i: end + (1 - end) * 0.5 * (1 + math.cos(math.pi * min(i / max_iter, 1.0))), cfg)


def build_poly_factor(cfg: CfgNode) -> Factor:
    """(1 - iteration / MAX_ITER) ** POLY_LR_POWER, and after the warm-up never below POLY_LR_CONSTANT_ENDING."""
    max_iter, power, floor = _max_iter(cfg), cfg.SOLVER.POLY_LR_POWER, cfg.SOLVER.POLY_LR_CONSTANT_ENDING
    warm_up = _warm_up_fraction(cfg)
    start = cfg.SOLVER.WARMUP_FACTOR

    def factor(iteration: int) -> float:
        decay = max(1.0 - iteration / max_iter, 0.0) ** power
        fraction = warm_up(iteration)
        warmth = start * (1.0 - fraction) + fraction
        # Parity: the warm-up multiplies the decay here, where the other schedules ramp to their value at its end.
        return max(decay, floor) if warmth == 1.0 else warmth * decay

    return factor


def _ramp_to(factor: Factor, cfg: CfgNode) -> Factor:
    """Return a warm-up from WARMUP_FACTOR × the first value to the value at its end."""
    length, fraction = cfg.SOLVER.WARMUP_ITERS, _warm_up_fraction(cfg)
    start, end = cfg.SOLVER.WARMUP_FACTOR * factor(0), factor(length)

    def warmed(iteration: int) -> float:
        if iteration >= length:
            return factor(iteration)
        part = fraction(iteration)
        return start * (1.0 - part) + end * part

    return warmed


def _warm_up_fraction(cfg: CfgNode) -> Factor:
    """Return how much of the warm-up is over, 0 to 1."""
    length, method = cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_METHOD
    if method == "linear":
        return lambda iteration: 1.0 if iteration >= length else iteration / length
    if method == "constant":
        return lambda iteration: 1.0 if iteration >= length else 0.0
    raise ConfigError(f"SOLVER.WARMUP_METHOD must be linear or constant, found {method!r}")


def _max_iter(cfg: CfgNode) -> int:
    return max(int(cfg.SOLVER.MAX_ITER), 1)


_SCHEDULES: dict[str, Callable[[CfgNode], Factor]] = {
    "WarmupMultiStepLR": build_multi_step_factor,
    "WarmupPolyLR": build_poly_factor,
    "WarmupCosineLR": build_cosine_factor,
}
