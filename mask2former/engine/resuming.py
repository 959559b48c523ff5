"""Resuming with another config than the checkpoint's: what differs takes effect, or is refused by its key."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from mask2former.config import CfgNode
from mask2former.errors import CheckpointError, ConfigError

# What acts at the start of a run alone, and why it cannot act later.
_SETTLED = {
    "MODEL.WEIGHTS": "a run that is resumed goes on from its own weights",
    "MODEL.TIMM.WEIGHTS": "a run that is resumed goes on from its own weights",
    "SEED": "its random numbers go on from where they were",
    "SOLVER.OPTIMIZER": "an optimiser cannot go on from what another one gathered",
    "DATASETS.OWN.CLASSES": "the model was trained for those classes",
}
_OF_THE_PLACE = ("OUTPUT_DIR", "DATASETS.OWN.INDEX", "VERBOSE")  # a folder may be moved
_MARKS = {"betas": "ADAMW", "momentum": "SGD"}  # settings that one optimiser alone has
_NUM_SHOWN = 20

logger = logging.getLogger(__name__)


def check_changes(cfg: CfgNode, state: Mapping[str, Any], *, source: Path) -> None:
    """Compare the config with that of the checkpoint; logs what changed and takes effect.

    Raises:
        ConfigError: a key says what cannot take effect any more.
    """
    iterations = int(state["iteration"]) + 1
    if iterations > cfg.SOLVER.MAX_ITER:
        raise ConfigError(
            f"SOLVER.MAX_ITER: {source} has {iterations} iterations behind it, expected at least as many, found "
            f"{cfg.SOLVER.MAX_ITER}"
        )
    before, now = _flatten(state.get("config")), _flatten(cfg.dump())
    changed = {
        key: (before[key], now[key])
        for key in now
        if key in before and before[key] != now[key] and key not in _OF_THE_PLACE
    }
    refused = [key for key in _SETTLED if key in changed]
    if refused:
        lines = [
            f"{key}: found {_show(changed[key][1])}, was {_show(changed[key][0])}: {_SETTLED[key]}" for key in refused
        ]
        raise ConfigError(
            f"{source} cannot be resumed with other values of what is settled when a run begins; leave them as they "
            "were, or begin a new run in another OUTPUT_DIR:\n  " + "\n  ".join(lines)
        )
    if changed:
        shown = [f"{key} {_show(old)} → {_show(new)}" for key, (old, new) in changed.items()]
        more = [f"and {len(shown) - _NUM_SHOWN} more"] if len(shown) > _NUM_SHOWN else []
        logger.info("changed since %s was written: %s", source, ", ".join([*shown[:_NUM_SHOWN], *more]))


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Put back what the optimiser gathered for each parameter, by name; rates and settings stay those of the config.

    Raises:
        CheckpointError: the state is of another kind of optimiser, or cannot be told apart.
    """
    own = optimizer.state_dict()
    settings = set(own["param_groups"][0])
    for mark, name in _MARKS.items():
        if mark in saved["param_groups"][0] and mark not in settings:
            found = type(optimizer).__name__
            raise CheckpointError(f"SOLVER.OPTIMIZER: expected {name}, which it was trained with, found {found}")
    index_of = _indices(saved["param_groups"])
    known = {index: index_of[name] for name, index in _indices(own["param_groups"]).items() if name in index_of}
    state = {index: saved["state"][old] for index, old in known.items() if old in saved["state"]}
    optimizer.load_state_dict({"state": state, "param_groups": own["param_groups"]})


def restore_schedule(scheduler: LRScheduler, saved: Mapping[str, Any], *, iteration: int) -> None:
    """Put a schedule to its place before ``iteration``; one in closed form keeps the base rates of the config."""
    if not isinstance(scheduler, LambdaLR):
        scheduler.load_state_dict(dict(saved))
        return
    scheduler.last_epoch, scheduler._step_count = iteration, iteration + 1
    rates = [base * factor(iteration) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


def _indices(groups: list[dict[str, Any]]) -> dict[str, int]:
    """Return the number of each parameter's state, by the name of the parameter."""
    if not all("param_names" in group for group in groups):
        raise CheckpointError("its optimiser does not name its parameters")
    return {name: index for group in groups for name, index in zip(group["param_names"], group["params"], strict=True)}


def _flatten(text: Any) -> dict[str, Any]:
    """Return the dotted keys of a dumped config, with their values; none where there is no such text."""
    try:
        content = yaml.safe_load(text) if isinstance(text, str) else None
    except yaml.YAMLError:
        content = None
    flat: dict[str, Any] = {}
    pending = list(content.items()) if isinstance(content, dict) else []
    while pending:
        key, value = pending.pop(0)
        if isinstance(value, dict):
            pending[:0] = [(f"{key}.{name}", part) for name, part in value.items()]
        else:
            flat[key] = value
    return flat


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
