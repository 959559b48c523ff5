"""Segments of an id map, against masks compared one by one and pycocotools' codes."""

from __future__ import annotations

import numpy as np
import pytest

from mask2former.data.datasets.instance_maps import segments_of
from mask2former.structures import bitmasks_to_rles


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (5, 7), (33, 64)])
@pytest.mark.parametrize("num_ids", [1, 2, 9])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_segments_of_map_equal_masks(size: tuple[int, int], num_ids: int, dtype: type) -> None:
    rng = np.random.default_rng(size[0] * num_ids)
    step = 20 if dtype == np.uint8 else 1000
    ids = (rng.integers(0, num_ids, size) * step).astype(dtype)
    segments = segments_of(ids)
    assert [s.id for s in segments] == np.unique(ids).tolist()
    for segment in segments:
        mask = ids == segment.id
        rows, columns = np.nonzero(mask)
        assert segment.area == mask.sum()
        assert segment.box == (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
        assert segment.to_rle(size) == bitmasks_to_rles(mask[None])[0]


def test_segments_of_map_at_the_corners() -> None:
    ids = np.zeros((6, 8), np.uint8)
    ids[0, 0], ids[-1, -1], ids[:, 3] = 1, 2, 3
    for segment in segments_of(ids):
        assert segment.to_rle(ids.shape) == bitmasks_to_rles((ids == segment.id)[None])[0]
