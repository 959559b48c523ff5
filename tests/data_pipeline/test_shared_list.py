"""The dataset dicts lie in memory once, however many workers read them."""

from __future__ import annotations

import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch.multiprocessing  # noqa: F401  (which teaches ForkingPickler to send handles of tensors)
from torch.utils.data import DataLoader

from mask2former.data.loader import MappedDataset
from mask2former.data.transport import DatasetFromList

NUM_RECORDS, RECORD_BYTES = 400, 100_000


def _large_dataset() -> DatasetFromList:
    return DatasetFromList([{"file_name": f"{i}.jpg", "polygons": bytes(RECORD_BYTES)} for i in range(NUM_RECORDS)])


def _private_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def test_dataset_from_list_returns_equal_fresh_dicts() -> None:
    dicts: list[dict[str, Any]] = [{"file_name": f"{i}.jpg", "annotations": list(range(i))} for i in range(5)]
    dataset = DatasetFromList(dicts)
    assert len(dataset) == 5
    assert [dataset[i] for i in range(5)] == dicts
    dataset[4]["annotations"].clear()
    assert dataset[4] == dicts[4]
    assert len(DatasetFromList([])) == 0


def test_dataset_from_list_is_sent_as_a_handle() -> None:
    dataset = _large_dataset()
    before = dataset[7]
    assert len(ForkingPickler.dumps(dataset)) < 2_000
    assert dataset[7] == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_dataset_from_list_does_not_grow_workers(start: str) -> None:
    mapped = MappedDataset(_large_dataset(), len, seed=0)
    loader = DataLoader(mapped, batch_size=100, num_workers=1, prefetch_factor=1, multiprocessing_context=start)
    lengths = iter(loader)
    total = next(lengths).sum()
    worker = lengths._workers[0]  # type: ignore[attr-defined]
    before = _private_bytes(worker.pid)
    sums = []
    for batch in lengths:
        sums.append(int(batch.sum()))
        if len(sums) == 2:  # all is mapped, and the worker still there
            grown = _private_bytes(worker.pid) - before
    assert int(total) + sum(sums) == 2 * NUM_RECORDS
    assert grown < NUM_RECORDS * RECORD_BYTES / 8
