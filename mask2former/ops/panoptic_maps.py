"""Passes over maps of segment ids: the ids that a PNG's filtered bytes say, and the histogram of pairs of ids.

Both run over whole rows of what is mostly the same value. Where the compiled library is missing, the histogram is
NumPy's and PNG files are left to an image library; results are the same.

Letters: H W size, N listed ids of the truth, M of the prediction.
"""

from __future__ import annotations

import numpy as np

from mask2former.ops import native

_MAX_ID = np.iinfo(np.int32).max


def unfilter_ids(data: bytes | bytearray, size: tuple[int, int]) -> np.ndarray | None:
    """Ids (H, W) int32, R + 256 G + 65536 B, of an RGB PNG's inflated data: a byte of filter and 3 W of pixels a row.

    None where the data has another length, names a filter that does not exist, or there is no library.
    """
    height, width = size
    library = native.cpu_library()
    if library is None or len(data) != height * (1 + 3 * width):
        return None
    ids = np.empty(size, dtype=np.int32)
    rows = np.frombuffer(data, dtype=np.uint8)
    return None if library.m2f_png_ids(rows.ctypes.data, height, width, ids.ctypes.data) else ids


def joint_histogram(
    truth: np.ndarray, prediction: np.ndarray, *, truth_ids: np.ndarray, predicted_ids: np.ndarray
) -> np.ndarray:
    """Pixels (1 + N, 1 + M) int64 that have each pair of ids, in the order of the lists; first: ids not listed.

    Args:
        truth: (H, W) integers that int32 can hold.
        prediction: the same.
        truth_ids: (N,) int32, each once, from 0 on.
        predicted_ids: (M,) int32, the same.

    Raises:
        MemoryError: there is none for the kernel's working space.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"maps must have one shape, got {truth.shape} and {prediction.shape}")
    for name, ids in (("truth", truth), ("prediction", prediction), ("truth_ids", truth_ids), ("ids", predicted_ids)):
        _check_ids(name, ids, is_list=name.endswith("ids"))
    maps = [np.ascontiguousarray(ids, dtype=np.int32).reshape(-1) for ids in (truth, prediction)]
    lists = [np.ascontiguousarray(ids, dtype=np.int32) for ids in (truth_ids, predicted_ids)]
    library = native.cpu_library()
    if library is None:
        return _joint_histogram_of_runs(*maps, *lists)
    joint = np.zeros((1 + len(truth_ids), 1 + len(predicted_ids)), dtype=np.int64)
    status = library.m2f_joint_histogram(
        *(ids.ctypes.data for ids in maps),
        maps[0].size,
        *(argument for ids in lists for argument in (ids.ctypes.data, len(ids))),
        joint.ctypes.data,
    )
    native.check_status(status)
    return joint


def _check_ids(name: str, ids: np.ndarray, *, is_list: bool) -> None:
    if ids.dtype.kind not in "iu" or (is_list and (ids.ndim != 1 or (len(ids) and ids.min() < 0))):
        raise ValueError(f"{name} must be integers{', one list from 0 on' if is_list else ''}, got {ids.dtype}")
    if ids.size and not np.can_cast(ids.dtype, np.int32) and (ids.max() > _MAX_ID or ids.min() < -_MAX_ID):
        raise ValueError(f"{name} must be ids that int32 can hold, got {ids.min()} to {ids.max()}")


def _joint_histogram_of_runs(
    truth: np.ndarray, prediction: np.ndarray, truth_ids: np.ndarray, predicted_ids: np.ndarray
) -> np.ndarray:
    """The same of flat maps: neighbours with the same pair of ids are counted together, a fiftieth of the pixels."""
    is_start = np.ones(truth.shape, dtype=bool)
    np.not_equal(truth[1:], truth[:-1], out=is_start[1:])
    is_start[1:] |= prediction[1:] != prediction[:-1]
    starts = np.flatnonzero(is_start)
    lengths = np.diff(starts, append=len(is_start))
    num_rows, num_columns = 1 + len(truth_ids), 1 + len(predicted_ids)
    pairs = _positions(truth[starts], truth_ids) * num_columns + _positions(prediction[starts], predicted_ids)
    # Weights are summed as float64, exact far beyond the pixels of any image.
    joint = np.bincount(pairs, weights=lengths, minlength=num_rows * num_columns)
    return joint.astype(np.int64).reshape(num_rows, num_columns)


def _positions(ids: np.ndarray, listed: np.ndarray) -> np.ndarray:
    """1 + the place of each id in the list; 0 where it is not there."""
    if not len(listed):
        return np.zeros(len(ids), dtype=np.int64)
    order = np.argsort(listed)
    nearest = order[np.minimum(np.searchsorted(listed, ids, sorter=order), len(listed) - 1)]
    return np.where(listed[nearest] == ids, nearest + 1, 0)
