"""Passes over maps of segment ids: decode the ids from a PNG's filtered bytes, and count pairs of ids.

Both process runs of equal values in a row at once. Without the compiled library the histogram is NumPy's and PNG files
are decoded by an image library; results are the same.

Letters: H W size, N listed ids of the truth, M of the prediction.
"""

from __future__ import annotations

import numpy as np

from mask2former.ops import native

_MAX_ID = np.iinfo(np.int32).max


def unfilter_ids(data: bytes | bytearray, size: tuple[int, int]) -> np.ndarray | None:
    """Return ids (H, W) int32, R + 256 G + 65536 B, from the inflated data of an RGB PNG.

    A row of the data is a filter byte and 3 W bytes of pixels. None if the data has another length or an unknown
    filter, or there is no library.
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
    """Return the number of pixels (1 + N, 1 + M) int64 with each pair of ids, in the order of the lists.

    The first row and column count ids that are not listed.

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
    listed = ids.tolist() if is_list and ids.ndim == 1 else []
    if ids.dtype.kind not in "iu" or (is_list and (ids.ndim != 1 or min(listed, default=0) < 0)):
        raise ValueError(f"{name} must be integers{', one list from 0 on' if is_list else ''}, got {ids.dtype}")
    if len(set(listed)) < len(listed):
        raise ValueError(f"{name} must list each id once")
    if ids.size and not np.can_cast(ids.dtype, np.int32) and (ids.max() > _MAX_ID or ids.min() < -_MAX_ID):
        raise ValueError(f"{name} must be ids that int32 can hold, got {ids.min()} to {ids.max()}")


def _joint_histogram_of_runs(
    truth: np.ndarray, prediction: np.ndarray, truth_ids: np.ndarray, predicted_ids: np.ndarray
) -> np.ndarray:
    """Return the histogram of flat maps, counting neighbours with the same pair of ids together."""
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
    """Return 1 + the position of each id in the list; 0 if it is not listed."""
    if not len(listed):
        return np.zeros(len(ids), dtype=np.int64)
    order = np.argsort(listed)
    nearest = order[np.minimum(np.searchsorted(listed, ids, sorter=order), len(listed) - 1)]
    return np.where(listed[nearest] == ids, nearest + 1, 0)
