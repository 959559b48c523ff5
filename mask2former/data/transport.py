"""What the loader shares with its workers: dataset dicts in common memory, and batches sent as one block.

Sent tensor by tensor, every one of them costs a file descriptor and two system calls, which for small images takes
longer than reading them. Here all tensors of a batch share one block, and the receiver's are views of it. Masks are
sent as bits: the system clears every new page of shared memory, which costs far more than packing and unpacking them.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from mask2former.data.catalog import DatasetDict

_ALIGNMENT = 64  # bytes; a cache line


class PackedBatch(NamedTuple):
    """The pickled structure, the (begin, end) of each tensor's and array's data, and the data (bytes,) uint8."""

    structure: bytes
    tensors: list[tuple[int, int]]
    arrays: list[tuple[int, int]]
    block: torch.Tensor


class _Pickler(pickle.Pickler):
    """Leaves the data of arrays and of CPU tensors out of the stream."""

    def __init__(self, stream: io.BytesIO) -> None:
        self.tensors: list[memoryview] = []
        self.arrays: list[pickle.PickleBuffer] = []
        super().__init__(stream, protocol=5, buffer_callback=self.arrays.append)

    def persistent_id(self, obj: Any) -> Any:
        if type(obj) is not torch.Tensor or not _has_numpy_form(obj):
            return None
        flat = obj.contiguous().view(-1)
        if obj.dtype == torch.bool:
            self.tensors.append(np.packbits(flat.numpy()).data)
        else:
            self.tensors.append(flat.view(torch.uint8).numpy().data)
        return len(self.tensors) - 1, obj.dtype, tuple(obj.shape)


class _Unpickler(pickle.Unpickler):
    """Makes tensors views of the block, which keeps it in use and pinned; unpacks masks."""

    def __init__(self, packed: PackedBatch) -> None:
        data = packed.block.numpy().data
        super().__init__(io.BytesIO(packed.structure), buffers=[data[begin:end] for begin, end in packed.arrays])
        self.packed = packed

    def persistent_load(self, pid: Any) -> torch.Tensor:
        place, dtype, shape = pid
        begin, end = self.packed.tensors[place]
        data = self.packed.block[begin:end]
        return _unpack_mask(data, shape) if dtype == torch.bool else data.view(dtype).view(shape)


def _unpack_mask(bits: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a bool tensor of that shape, pinned where its bits (bytes,) uint8 are."""
    count = math.prod(shape)
    mask = torch.from_numpy(np.unpackbits(bits.numpy(), count=count)).view(torch.bool).view(shape)
    return mask.pin_memory() if bits.is_pinned() else mask


def _has_numpy_form(tensor: torch.Tensor) -> bool:
    is_plain = tensor.device.type == "cpu" and tensor.layout == torch.strided and not tensor.requires_grad
    return is_plain and tensor.dtype in _NUMPY_DTYPES


_NUMPY_DTYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.float32, torch.float64),
)


def pack(batch: Any) -> PackedBatch:
    """Copy the data of all tensors and arrays in ``batch`` into one block of shared memory."""
    stream = io.BytesIO()
    pickler = _Pickler(stream)
    pickler.dump(batch)
    views = [*pickler.tensors, *(buffer.raw() for buffer in pickler.arrays)]
    extents, end = [], 0
    for view in views:
        begin = -(-end // _ALIGNMENT) * _ALIGNMENT
        end = begin + view.nbytes
        extents.append((begin, end))
    block = _shared_bytes(end)
    data = block.numpy().data
    for (begin, end), view in zip(extents, views, strict=True):
        data[begin:end] = view
    count = len(pickler.tensors)
    return PackedBatch(stream.getvalue(), extents[:count], extents[count:], block)


def unpack(packed: PackedBatch) -> Any:
    """Return the batch that was packed; its tensors and arrays are views of the block."""
    return _Unpickler(packed).load()


def _shared_bytes(num_bytes: int) -> torch.Tensor:
    # As torch's own collation does it: a block that is shared from the start is not copied to be sent.
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(num_bytes))


class DatasetFromList(Dataset):
    """Dataset dicts, pickled once into one buffer of bytes; reading one returns a fresh dict.

    A list of a million small dicts would be copied into every worker, because reading it counts references. Forked
    workers share this buffer; for spawned ones it moves to shared memory when the first of them starts.
    """

    def __init__(self, dataset_dicts: Sequence[DatasetDict]) -> None:
        pickled = [pickle.dumps(record, protocol=pickle.HIGHEST_PROTOCOL) for record in dataset_dicts]
        self._ends = torch.from_numpy(np.cumsum([len(p) for p in pickled], dtype=np.int64))
        self._bytes = torch.frombuffer(bytearray().join(pickled) or bytearray(1), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> DatasetDict:
        begin = 0 if index == 0 else int(self._ends[index - 1])
        return pickle.loads(self._bytes.numpy()[begin : int(self._ends[index])].data)

    def __getstate__(self) -> dict[str, Any]:
        for tensor in (self._ends, self._bytes):
            tensor.share_memory_()  # what torch sends to another process is then a handle
        return self.__dict__
