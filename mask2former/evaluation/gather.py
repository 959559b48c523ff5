"""Bringing what each process has seen to the main process."""

from __future__ import annotations

from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def is_main_process() -> bool:
    """Whether this is the process that computes and reports; true without torch.distributed."""
    return _num_processes() == 1 or dist.get_rank() == 0


def gather_on_main(part: T) -> list[T] | None:
    """The parts of all processes, by rank, on the main process; None elsewhere. All processes must call it."""
    if _num_processes() == 1:
        return [part]
    # NCCL would pickle through GPU memory: bulky host data goes over gloo.
    group = dist.new_group(backend="gloo") if dist.get_backend() == "nccl" else None
    parts: list[Any] | None = [None] * _num_processes() if is_main_process() else None
    dist.gather_object(part, parts, dst=0, group=group)  # type: ignore[arg-type]
    if group is not None:
        dist.destroy_process_group(group)
    return parts


def _num_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
