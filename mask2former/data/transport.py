"""A batch as one block of memory, from a worker to the process that trains.

Sent tensor by tensor, every one of them costs a file descriptor and two system calls, which for small images takes
longer than reading them. Here all tensors of a batch share one block, and the receiver's are views of it.
"""

from __future__ import annotations

import io
import pickle
from typing import Any, NamedTuple

import torch

_ALIGNMENT = 64  # bytes; a cache line


class PackedBatch(NamedTuple):
    """Pickled structure, the extent (begin, end) of every tensor's data, and the data (bytes,) uint8."""

    structure: bytes
    extents: list[tuple[int, int]]
    block: torch.Tensor


class _TensorPickler(pickle.Pickler):
    """Leaves the data of tensors on the CPU out of the stream, as that of arrays is."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is not torch.Tensor or not _has_numpy_form(obj):
            return NotImplemented
        return torch.from_numpy, (obj.contiguous().numpy(),)


def _has_numpy_form(tensor: torch.Tensor) -> bool:
    is_plain = tensor.device.type == "cpu" and tensor.layout == torch.strided and not tensor.requires_grad
    return is_plain and tensor.dtype in _NUMPY_DTYPES


_NUMPY_DTYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.float32, torch.float64),
)


def pack(batch: Any) -> PackedBatch:
    """Copy the data of all tensors and arrays in ``batch`` into one block."""
    stream = io.BytesIO()
    buffers: list[pickle.PickleBuffer] = []
    _TensorPickler(stream, protocol=5, buffer_callback=buffers.append).dump(batch)
    views = [buffer.raw() for buffer in buffers]
    extents, end = [], 0
    for view in views:
        begin = -(-end // _ALIGNMENT) * _ALIGNMENT
        end = begin + view.nbytes
        extents.append((begin, end))
    block = torch.empty(end, dtype=torch.uint8)
    data = block.numpy().data
    for (begin, end), view in zip(extents, views, strict=True):
        data[begin:end] = view
    return PackedBatch(stream.getvalue(), extents, block)


def unpack(packed: PackedBatch) -> Any:
    """The batch that was packed; its tensors and arrays are views of the block."""
    data = packed.block.numpy().data
    return pickle.loads(packed.structure, buffers=[data[begin:end] for begin, end in packed.extents])
