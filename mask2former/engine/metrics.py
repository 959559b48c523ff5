"""Where a run's numbers go: log lines, ``metrics.json``, TensorBoard."""

from __future__ import annotations

import contextlib
import datetime
import errno
import io
import itertools
import json
import logging
import math
import os
import resource
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from mask2former import distributed
from mask2former.engine.nonfinite import LossVector, is_auxiliary, with_total
from mask2former.errors import InputError
from mask2former.files.atomic import write_bytes_atomic
from mask2former.files.inputs import read_file

METRICS_FILE = "metrics.json"

logger = logging.getLogger(__name__)


class MetricWriter(Protocol):
    """Takes the metrics of an iteration; may be given several parts of one iteration."""

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Takes a part."""

    def close(self) -> None:
        """No more follows."""


@runtime_checkable
class ImageWriter(MetricWriter, Protocol):
    """A metric writer that takes pictures too."""

    def write_images(self, iteration: int, images: Mapping[str, np.ndarray]) -> None:
        """Takes pictures (H, W, 3) uint8 RGB by name."""


class LossWindow:
    """Mean of each loss term over the steps since the last look, kept on the device until then."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._sums: torch.Tensor | None = None  # (L + 1,): sum of each term, number of finite steps

    def add(self, losses: LossVector) -> None:
        """Takes in a step; one that is not finite does not count. A step with other terms starts a new window."""
        values = torch.cat([losses.values, losses.values.new_ones(1)])
        # Skipped steps are known to the host only later, so they are left out here, without asking.
        values = torch.where(torch.isfinite(values).all(), values, torch.zeros_like(values))
        if self._sums is None or losses.names != self._names:
            self._names, self._sums = losses.names, values
        else:
            self._sums = self._sums + values

    def mean(self) -> dict[str, float]:
        """Means over steps and processes by name; one copy to the host. Empty without a finite step."""
        if self._sums is None:
            return {}
        *sums, count = distributed.average(self._sums).tolist()
        return with_total(self._names, [value / count for value in sums]) if count else {}

    def reset(self) -> None:
        """Starts a new window."""
        self._names, self._sums = (), None

    def state_dict(self) -> dict[str, Any]:
        """The window so far, so that a resumed run writes the same means."""
        return {"names": list(self._names), "sums": None if self._sums is None else self._sums.cpu()}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Takes up what ``state_dict`` gave."""
        self._names = tuple(state["names"])
        self._sums = None if state["sums"] is None else state["sums"].to(device)


class JsonWriter:
    """One JSON object a line and iteration, in increasing order, also after a restart."""

    def __init__(self, path: Path, *, start_iter: int = 0) -> None:
        """Keeps the lines of an earlier part of the run before ``start_iter``; later or torn ones go."""
        self._path = path
        lines = _lines_before(path, start_iter) if path.exists() else []
        self._last: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        self._last_offset = sum(map(len, lines[:-1]))
        write_bytes_atomic(b"".join(lines), path)
        self._file = self._open()

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Writes a line, or adds to the last one where it is of the same iteration."""
        is_added = self._last.get("iteration") == iteration
        if not is_added:
            self._last, self._last_offset = {"iteration": iteration}, self._file.tell()
        # JSON has no NaN: a metric without anything to measure is null.
        self._last |= {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        line = (json.dumps(self._last) + "\n").encode()
        try:
            if is_added:
                self._replace_last(line)
            elif self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise InputError(f"{self._path}: cannot be written: {error.strerror or error}") from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _open(self) -> io.FileIO:
        return io.FileIO(self._path, "a")  # without a buffer: a line is one call, and a full disk is known at once

    def _replace_last(self, line: bytes) -> None:
        """Cut and written in place, the line of a checkpoint that exists would be lost by a kill in between."""
        self._file.close()
        write_bytes_atomic(self._path.read_bytes()[: self._last_offset] + line, self._path, is_durable=False)
        self._file = self._open()


class TensorBoardWriter:
    """Event files in the output folder; where the disk takes no more it says so once, and the run goes on."""

    def __init__(self, directory: Path, *, start_iter: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._directory = directory
        self._writer: Any = None
        self._hook_before = threading.excepthook
        threading.excepthook = self._on_thread_failure  # what is buffered is written by a thread
        with self._said_failures():
            self._writer = SummaryWriter(str(directory), purge_step=start_iter or None)

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Adds each metric as a scalar."""
        with self._said_failures():
            for name, value in metrics.items():
                if self._writer is not None:
                    self._writer.add_scalar(name, value, iteration)

    def write_images(self, iteration: int, images: Mapping[str, np.ndarray]) -> None:
        """Adds each picture."""
        with self._said_failures():
            for name, image in images.items():
                if self._writer is not None:
                    self._writer.add_image(name, image, iteration, dataformats="HWC")

    def close(self) -> None:
        """Writes what is buffered."""
        with self._said_failures():
            if self._writer is not None:
                self._writer.close()
        threading.excepthook = self._hook_before

    @contextlib.contextmanager
    def _said_failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            logger.warning("%s: TensorBoard's files cannot be written: %s", self._directory, error.strerror or error)

    def _on_thread_failure(self, failure: threading.ExceptHookArgs) -> None:
        if not isinstance(failure.exc_value, OSError):  # one of ours is met again by the next call
            self._hook_before(failure)


class ConsoleWriter:
    """A line for people: the final layer's losses first, then their total over all layers."""

    def __init__(self, max_iter: int) -> None:
        self._max_iter = max_iter

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Logs training metrics; results of evaluations are logged as tables elsewhere."""
        if "time" not in metrics:
            return
        parts = [f"eta: {format_duration(metrics['eta_seconds'])}", f"iter: {iteration + 1}/{self._max_iter}"]
        parts += [f"{k}: {v:.4g}" for k, v in metrics.items() if "loss" in k and not is_auxiliary(k)]
        parts += [f"time: {metrics['time']:.4f}", f"data_time: {metrics['data_time']:.4f}", f"lr: {metrics['lr']:.4g}"]
        logger.info("%s  max_mem: %.0fM", "  ".join(parts), metrics["max_mem_mb"])

    def close(self) -> None:
        """Nothing to close."""


class MetricLog:
    """Hands metrics to all writers."""

    def __init__(self, writers: Sequence[MetricWriter]) -> None:
        self._writers = list(writers)

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Takes metrics of an iteration."""
        for writer in self._writers:
            writer.write(iteration, metrics)

    def write_images(self, iteration: int, images: Mapping[str, np.ndarray]) -> None:
        """Takes pictures (H, W, 3) uint8 RGB by name, for the writers that take any."""
        for writer in self._writers:
            if isinstance(writer, ImageWriter):
                writer.write_images(iteration, images)

    def close(self) -> None:
        """Closes all writers."""
        for writer in self._writers:
            writer.close()


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MiB: tensors on a GPU, else the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes


def format_duration(seconds: float) -> str:
    """``1 day, 2:03:04``."""
    return str(datetime.timedelta(seconds=int(seconds)))


def flatten_results(results: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """``{"segm": {"AP": 1.0}}`` as ``{"segm/AP": 1.0}``, to any depth."""
    flat: dict[str, float] = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            flat |= flatten_results(value, f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = float(value)
    return flat


def set_aside(path: Path) -> None:
    """Renames a file of an earlier run: ``metrics.json`` to ``metrics_1.json``, or the first number that is free."""
    if path.exists() and path.stat().st_size:
        names = (path.with_stem(f"{path.stem}_{number}") for number in itertools.count(1))
        path.rename(next(name for name in names if not name.exists()))


def _lines_before(path: Path, start_iter: int) -> list[bytes]:
    kept = []
    for line in read_file(path, error=InputError).splitlines():
        try:
            iteration = json.loads(line)["iteration"]
        except (ValueError, KeyError, TypeError):
            continue
        if iteration < start_iter:
            kept.append(line + b"\n")
    return kept
