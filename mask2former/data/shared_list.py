"""Dataset dicts in memory that all worker processes share."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from mask2former.data.catalog import DatasetDict


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
