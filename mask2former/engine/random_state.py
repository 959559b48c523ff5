"""Seeds, and every random generator's state, to be saved and restored."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

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
