"""Segment ids of PNG rows and histograms of pairs of ids: the library beside NumPy and beside plain definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former.ops import joint_histogram, native, panoptic_maps, unfilter_ids


def png_rows(ids: np.ndarray, filters: list[int]) -> bytes:
    """PNG's filtered rows of ids (H, W), written down from its definition byte by byte."""
    height, width = ids.shape
    pixels = np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], -1).reshape(height, 3 * width).tolist()
    data = bytearray()
    for y, row in enumerate(pixels):
        data.append(filters[y])
        for x, value in enumerate(row):
            left = row[x - 3] if x >= 3 else 0
            above = pixels[y - 1][x] if y else 0
            corner = pixels[y - 1][x - 3] if y and x >= 3 else 0
            start = left + above - corner
            paeth = min((left, above, corner), key=lambda v, start=start: abs(start - v))
            data.append((value - (0, left, above, (left + above) // 2, paeth)[filters[y]]) % 256)
    return bytes(data)


@pytest.mark.usefixtures("cpu_library")
@pytest.mark.parametrize("size", [(1, 1), (1, 37), (23, 1), (19, 53), (8, 32)])
@pytest.mark.parametrize("num_ids", [3, 1 << 20], ids=["few ids", "any ids"])
def test_unfiltered_ids_are_those_filtered(size: tuple[int, int], num_ids: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(1 << 24, size=num_ids) if num_ids < 10 else np.arange(num_ids)
    ids = values[rng.integers(num_ids, size=size)].repeat(2, 0)[: size[0]].astype(np.int32)
    for filters in [[kind] * size[0] for kind in range(5)] + [rng.integers(5, size=size[0]).tolist()]:
        found = unfilter_ids(png_rows(ids, filters), size)
        assert found is not None
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, ids)


@pytest.mark.usefixtures("cpu_library")
def test_wrong_rows_are_no_ids() -> None:
    rows = png_rows(np.arange(6, dtype=np.int32).reshape(2, 3), [0, 2])
    assert unfilter_ids(rows[:-1], (2, 3)) is None
    assert unfilter_ids(rows, (3, 2)) is None
    assert unfilter_ids(rows[:10] + b"\x05" + rows[11:], (2, 3)) is None


def counted(truth: np.ndarray, prediction: np.ndarray, truth_ids: list[int], predicted_ids: list[int]) -> np.ndarray:
    joint = np.zeros((1 + len(truth_ids), 1 + len(predicted_ids)), dtype=np.int64)
    for t, p in zip(truth.reshape(-1).tolist(), prediction.reshape(-1).tolist()):
        row = 1 + truth_ids.index(t) if t in truth_ids else 0
        joint[row, 1 + predicted_ids.index(p) if p in predicted_ids else 0] += 1
    return joint


ID_LISTS = st.lists(st.sampled_from([0, 1, 2, 7, 255, 256, 65535, (1 << 24) - 1, 1 << 30]), unique=True, max_size=6)


@pytest.mark.usefixtures("cpu_library")
@settings(deadline=None, max_examples=60)
@given(st.integers(0, 60), st.integers(0, 40), ID_LISTS, ID_LISTS, st.integers(0, 1 << 30))
def test_joint_histogram_counts_pairs(
    height: int, width: int, truth_ids: list[int], predicted_ids: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    present = np.array([0, 1, 2, 7, 255, 65535, (1 << 24) - 1, -3])
    run = int(rng.integers(1, 30))
    truth, prediction = (
        rng.choice(present, size=height * width + run).repeat(run)[: height * width].reshape(height, width)
        for _ in range(2)
    )
    lists = {"truth_ids": np.array(truth_ids, np.int32), "predicted_ids": np.array(predicted_ids, np.int32)}
    found = joint_histogram(truth, prediction, **lists)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, counted(truth, prediction, truth_ids, predicted_ids))
    flat = (ids.astype(np.int32).reshape(-1) for ids in (truth, prediction))
    np.testing.assert_array_equal(panoptic_maps._joint_histogram_of_runs(*flat, *lists.values()), found)


def test_without_a_library_numpy_counts_and_files_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "cpu_library", lambda: None)
    truth, listed = np.array([[4, 4, 0]]), np.array([0, 4], dtype=np.int32)
    joint = joint_histogram(truth, truth[:, ::-1], truth_ids=listed, predicted_ids=listed)
    assert joint.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 1]]
    assert unfilter_ids(b"\0\4\0\0", (1, 1)) is None
