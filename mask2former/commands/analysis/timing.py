"""Seconds by stage, measured by wrapping the methods that are the stages; peak memory."""

from __future__ import annotations

import contextlib
import functools
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch


class StageTimer:
    """Seconds by stage, run by run; a CUDA device is waited for wherever the clock is read.

    A stage that happens several times in a run counts with the sum.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._runs: list[dict[str, float]] = []
        self._current: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of the block as that of a stage, or of a part of it."""
        start = self._now()
        yield
        self._current[name] = self._current.get(name, 0.0) + self._now() - start

    @contextlib.contextmanager
    def wrap(self, stages: Mapping[str, tuple[Any, str]]) -> Iterator[None]:
        """Time each call of methods, given as (object, name) by stage, until the block ends; skip unknown ones."""
        wrapped = []
        for stage, (owner, name) in stages.items():
            method = getattr(owner, name, None)
            if method is not None:
                setattr(owner, name, self._timed(stage, method))
                wrapped.append((owner, name))
        try:
            yield
        finally:
            for owner, name in wrapped:
                delattr(owner, name)  # the instance's attribute, which hid the method of the class

    def end_run(self) -> None:
        """What was measured since the last call is one run."""
        self._runs.append(self._current)
        self._current = {}

    def forget(self) -> None:
        """Drop all runs: the first ones pay for caches and allocations."""
        self._runs.clear()

    def median(self, name: str) -> float:
        """Return the median seconds of a stage over the runs that had it; 0 where none did."""
        seconds = [run[name] for run in self._runs if name in run]
        return statistics.median(seconds) if seconds else 0.0

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _timed(self, stage: str, method: Any) -> Any:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.stage(stage):
                return method(*args, **kwargs)

        return call


def peak_memory(device: torch.device) -> tuple[str, int] | None:
    """Return what was measured and its bytes.

    The most that CUDA's allocator gave out, or the largest size of this process.

    None where the system does not say (Windows).
    """
    if device.type == "cuda":
        return "peak memory of the device's tensors", torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return "peak memory of the process", peak if sys.platform == "darwin" else peak * 1024
