"""The state that a run needs to continue as if it had never stopped: weights, optimiser, every random generator."""

from __future__ import annotations

import contextlib
import logging
import os
import random
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mask2former import distributed
from mask2former.checkpoint import load_state_dict
from mask2former.engine.resuming import restore_optimizer, restore_schedule
from mask2former.engine.trainer import Hook, Trainer
from mask2former.errors import CheckpointError, ConfigError

_SEED_RANGE = 2**31


def draw_seed() -> int:
    """Return a seed from the operating system's entropy."""
    return int.from_bytes(os.urandom(4), "little") % _SEED_RANGE


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def get_random_state() -> dict[str, Any]:
    """Return the state of every generator, as tensors and plain values that a safe reader accepts."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.array(keys, dtype=np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what ``get_random_state`` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextlib.contextmanager
def preserved_random_state() -> Iterator[None]:
    """Restore all random generators when the block ends, so that training goes on as if it had not run."""
    state = get_random_state()
    try:
        yield
    finally:
        set_random_state(state)


def set_determinism(enabled: bool, *, benchmark: bool = False) -> None:
    """Deterministic kernels only (an operation without one raises), or cuDNN's choice by measurement.

    cuBLAS reads its workspace setting when CUDA starts: call this before the first use of a GPU.
    """
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(enabled)
    torch.backends.cudnn.deterministic = enabled
    torch.backends.cudnn.benchmark = benchmark and not enabled


logger = logging.getLogger(__name__)


def collect_state(trainer: Trainer, *, seed: int, images_per_step: int) -> dict[str, Any]:
    """Return the state after the current step. All processes must call it; the main one's is saved."""
    trainer.guard.settle()
    random_states = distributed.gather_on_main(get_random_state()) or []
    hooks = _hook_states(trainer)
    return {
        "model": trainer.unwrapped_model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": {} if trainer.scheduler is None else trainer.scheduler.state_dict(),
        "scaler": trainer.precision.scaler.state_dict(),
        "iteration": trainer.iteration,
        "images_seen": (trainer.iteration + 1) * images_per_step,
        "random_states": random_states,
        "hooks": hooks,
        "seed": seed,
        "num_samples": _num_samples(trainer),
        "num_threads": torch.get_num_threads(),
    }


def restore_state(trainer: Trainer, state: dict[str, Any], *, source: str | Path) -> None:
    """Put a collected state back; the generators once the data has started, for starting it draws from them.

    Raises:
        CheckpointError: the state is of another model or optimiser.
    """
    try:
        report = load_state_dict(trainer.unwrapped_model, state["model"], source=str(source))
        if not report.is_complete or report.unexpected:
            raise CheckpointError(f"cannot resume another model.\n{report.format()}")
        trainer.iteration = trainer.start_iter = int(state["iteration"]) + 1
        restore_optimizer(trainer.optimizer, state["optimizer"])
        if trainer.scheduler is not None:
            restore_schedule(trainer.scheduler, state["scheduler"], iteration=trainer.start_iter)
        if state["scaler"]:  # empty: written without mixed precision
            trainer.precision.scaler.load_state_dict(state["scaler"])
        hooks, random_states = state["hooks"], state["random_states"]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, CheckpointError) and str(error).startswith("cannot resume another model"):
            raise
        raise CheckpointError(
            f"{source}: cannot be resumed with this configuration: {error}; to start from its weights alone, leave "
            f"out --resume and set MODEL.WEIGHTS {source}"
        ) from error
    for name, hook in _named_hooks(trainer):
        if name in hooks:
            hook.load_state_dict(hooks[name])
    logger.info("resumed from %s: next iteration %d of %d", source, trainer.start_iter, trainer.max_iter)
    _compare_threads(state, source)
    _compare_data(trainer, state, source)
    if len(random_states) == distributed.get_world_size():
        own = random_states[distributed.get_rank()]
        trainer.when_data_started = lambda: set_random_state(own)
    else:
        logger.warning(
            "%s was written by %d processes, now there are %d: random numbers differ from those of an unbroken run",
            source,
            len(random_states),
            distributed.get_world_size(),
        )


def _compare_threads(state: dict[str, Any], source: str | Path) -> None:
    now = torch.get_num_threads()
    if state.get("num_threads", now) != now:
        # Sums are split among threads, and their order decides the last bits.
        logger.warning(
            "%s was written with %d threads, now there are %d: results agree to rounding, not to the bit",
            source,
            state["num_threads"],
            now,
        )


def _compare_data(trainer: Trainer, state: dict[str, Any], source: str | Path) -> None:
    before, now = state.get("num_samples"), _num_samples(trainer)
    if before is not None and now is not None and before != now:
        logger.warning(
            "%s was written with %d images to train on, now there are %d: they are drawn anew", source, before, now
        )


def _num_samples(trainer: Trainer) -> int | None:
    """Return the images of the training data, where the batches tell."""
    found = getattr(trainer.batches, "num_samples", None)
    return found if type(found) is int else None


def _hook_states(trainer: Trainer) -> dict[str, dict[str, Any]]:
    states = {name: hook.state_dict() for name, hook in _named_hooks(trainer)}
    for name, state in states.items():
        _check_plain(state, f"state_dict of the hook {name}")
    return {name: state for name, state in states.items() if state}


def _named_hooks(trainer: Trainer) -> Iterator[tuple[str, Hook]]:
    """Yield hooks by the names of their classes; further ones of a class are numbered from 2."""
    seen: Counter[str] = Counter()
    for hook in trainer.hooks:
        name = type(hook).__name__
        seen[name] += 1
        yield (name if seen[name] == 1 else f"{name}_{seen[name]}"), hook


def _check_plain(value: Any, where: str) -> None:
    """Raise ConfigError for objects that are not plain data, which no checkpoint is read with."""
    if type(value) in (dict, OrderedDict):
        for key, part in value.items():
            _check_plain(part, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, part in enumerate(value):
            _check_plain(part, f"{where}[{index}]")
    elif not isinstance(value, torch.Tensor) and type(value) not in (type(None), bool, int, float, str, bytes):
        found = type(value).__name__  # numpy's numbers among them, though some derive from float
        raise ConfigError(f"{where}: expected tensors, numbers, text and containers of them, found {found}")
