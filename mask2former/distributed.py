"""Processes of a run: rank, world size, and collective operations. Works without a process group, too."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable

from mask2former.errors import InputError

T = TypeVar("T")

_TIMEOUT = datetime.timedelta(minutes=60)  # the main process evaluates alone while the others wait


def is_active() -> bool:
    """Return whether a process group exists."""
    return dist.is_available() and dist.is_initialized()


def get_rank() -> int:
    """Return the rank of this process, 0 for the main one."""
    return dist.get_rank() if is_active() else 0


def get_world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if is_active() else 1


def is_main() -> bool:
    """Return whether this is the main process, which writes files and log lines."""
    return get_rank() == 0


def local_rank() -> int:
    """Return the rank of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def was_launched() -> bool:
    """Return whether a launcher (torchrun, or ours) started this process as one of a group."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextlib.contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the group that the launcher's environment describes; do nothing without a launcher."""
    if not was_launched() or is_active():
        yield
        return
    on_gpu = device.startswith("cuda") and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local_rank())
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=_TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def average(tensor: torch.Tensor) -> torch.Tensor:
    """Return the mean of a tensor over the processes, on each of them."""
    if get_world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / get_world_size()


def gather_with_gradient(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensors (B, …) of all processes, equally shaped, by rank: (world size · B, …).

    The gradient flows back to the process that each row comes from.
    """
    if get_world_size() == 1:
        return tensor
    return torch.cat(differentiable.all_gather(tensor.contiguous()))


def any_process(flag: torch.Tensor) -> torch.Tensor:
    """Set a flag (float, 0 or 1) on all processes if it is set on any, in place."""
    if get_world_size() > 1:
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return flag


def gather_on_main(value: T) -> list[T] | None:
    """Return the values of all processes by rank on the main one, None elsewhere. All processes must call it."""
    if get_world_size() == 1:
        return [value]
    # NCCL alone would pickle through GPU memory: bulky host data goes over gloo.
    group = dist.new_group(backend="gloo") if dist.get_backend() == "nccl" else None
    values: list[Any] | None = [None] * get_world_size() if is_main() else None
    dist.gather_object(value, values, dst=0, group=group)  # type: ignore[arg-type]
    if group is not None:
        dist.destroy_process_group(group)
    return values


def broadcast(value: Any) -> Any:
    """Return the main process's value, on each of them."""
    if get_world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def on_main(function: Callable[[], T]) -> T:
    """Run ``function`` on the main process and return its result on all; an InputError is raised on all, too."""
    value: Any = None
    error: InputError | None = None
    if is_main():
        try:
            value = function()
        except InputError as caught:
            error = caught
    value, error = broadcast((value, error))
    if error is not None:
        raise error
    return value  # type: ignore[no-any-return]


def share_buffers(model: torch.nn.Module) -> None:
    """Copy the main process's buffers, such as running statistics of batch norms, to all processes."""
    if get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def barrier() -> None:
    """Wait for every process."""
    if get_world_size() > 1:
        dist.barrier()
