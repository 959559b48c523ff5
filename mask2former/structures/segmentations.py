"""Check COCO's forms of a mask — polygons, run-length codes, bitmaps — before they are drawn or decoded.

Training, own data, evaluation, results and conversion all use this module, so they accept the same input. pycocotools,
which draws and decodes, does not check its input: a code whose runs do not add up makes it read uninitialised memory or
loop for ever, and a distant coordinate exhausts the memory.
"""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from mask2former.errors import DatasetError
from mask2former.structures.masks import polygons_to_bitmask

MAX_PIXELS = 1 << 28  # of an image; image libraries refuse smaller ones as bombs
_MIN_POLYGON_NUMBERS = 6  # three points
_MAX_OUTLINE = 1 << 22  # pixels along a polygon: pycocotools takes 60 bytes for each
_FAR, _FAR_SIDES = 1024, 16  # a coordinate may lie so many pixels plus sides of the image away
_AREA_SLACK = 64  # pixels by which an area may differ from the mask's
_MAX_DIGITS = 7  # of a run length in base 32: beyond MAX_PIXELS
_MAX_SHOWN = 80  # characters of a wrong value in a message


def whole_number(value: Any) -> int | None:
    """``value`` as an integer where it plainly is one (3, 3.0, "3"), else None."""
    if type(value) is int:  # nearly always, and files hold millions
        return value
    if isinstance(value, (bool, np.bool_)):
        return None
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str) and len(value) <= _MAX_SHOWN:
        try:
            return int(value) if value.strip().lstrip("+-").isdecimal() else whole_number(float(value))
        except ValueError:
            return None
    return None


_SHOWN = reprlib.Repr()
_SHOWN.maxlist, _SHOWN.maxdict, _SHOWN.maxlevel = 8, 5, 3
_SHOWN.maxstring = _SHOWN.maxother = _MAX_SHOWN


def shown(value: Any) -> str:
    """Return a wrong value as text for a message, shortened."""
    return _SHOWN.repr(value)


def check_segmentation(segmentation: Any, size: tuple[int, int], where: str = "") -> Any:
    """Return the segmentation of an image of ``size`` (height, width) after checking that it is safe to draw or decode.

    The result is polygons (lists of numbers) without parts of fewer than three points, a run-length code whose runs are
    positive and add up to height x width, or a bitmap (H, W) uint8. ``where`` begins the message.

    Raises:
        DatasetError: it is none of these, has another size, or a coordinate is not finite or absurdly far away.
    """
    prefix = f"{where}: " if where else ""
    if isinstance(segmentation, Mapping):
        return _checked_rle(segmentation, size, prefix)
    if isinstance(segmentation, np.ndarray):
        if segmentation.shape != size:
            raise DatasetError(
                f"{prefix}bitmap has size {segmentation.shape}, its image (height, width) = {list(size)}"
            )
        return segmentation.astype(bool).view(np.uint8)
    if not isinstance(segmentation, (list, tuple)):
        raise DatasetError(
            f"{prefix}segmentation must be polygons, a run-length code (RLE) or a bitmap, found {shown(segmentation)}"
        )
    if not segmentation:
        raise DatasetError(f"{prefix}segmentation holds no polygon")
    if _is_bitmap(segmentation, size):
        return np.asarray(segmentation, dtype=np.uint8)
    return _checked_polygons(segmentation, size, prefix)


def lacks_points(segmentation: Any, size: tuple[int, int]) -> bool:
    """Return whether a segmentation consists only of polygons with fewer than three points, which mark nothing."""
    if not isinstance(segmentation, (list, tuple)) or not segmentation or _is_bitmap(segmentation, size):
        return False
    return all(
        isinstance(polygon, (list, tuple)) and len(polygon) < _MIN_POLYGON_NUMBERS and len(polygon) % 2 == 0
        for polygon in segmentation
    )


def segmentation_to_bitmask(segmentation: Any, height: int, width: int, *, context: str = "") -> np.ndarray:
    """Return the mask (H, W) bool of a COCO annotation: polygons, a run-length code, or a bitmap.

    ``context`` names the segmentation in errors ("annotation 7 of instances.json").

    Raises:
        DatasetError: see ``check_segmentation``.
    """
    return decode_segmentation(check_segmentation(segmentation, (height, width), context), (height, width))


def segmentation_to_rle(segmentation: Any, size: tuple[int, int], *, context: str = "") -> dict[str, Any]:
    """Return the compressed run-length code of a COCO annotation in an image of ``size`` (height, width).

    Raises:
        DatasetError: see ``check_segmentation``.
    """
    return encode_segmentation(check_segmentation(segmentation, size, context), size)


def decode_segmentation(checked: Any, size: tuple[int, int]) -> np.ndarray:
    """Return the mask (H, W) bool of what ``check_segmentation`` returned."""
    if isinstance(checked, list):
        return polygons_to_bitmask(checked, *size)
    if isinstance(checked, np.ndarray):
        return checked.astype(bool)
    return cv2.transpose(coco_mask.decode(encode_segmentation(checked, size)).T).view(bool)


def encode_segmentation(checked: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Return the compressed run-length code of what ``check_segmentation`` returned."""
    if isinstance(checked, list):
        return coco_mask.merge(coco_mask.frPyObjects(checked, *size))
    if isinstance(checked, np.ndarray):
        return coco_mask.encode(np.asfortranarray(checked, dtype=np.uint8))
    return coco_mask.frPyObjects(checked, *size) if isinstance(checked["counts"], list) else checked


def is_plain_area(stated: float, measured: float) -> bool:
    """Return whether a stated area is plausible for a mask of ``measured`` pixels, however it was measured."""
    tolerance = max(_AREA_SLACK, 0.5 * max(stated, measured))  # of outlines and of pixels; never ten times as many
    return abs(stated - measured) <= tolerance


def has_pixels(checked: Any, size: tuple[int, int]) -> bool:
    """Return whether what ``check_segmentation`` returned marks a pixel."""
    if isinstance(checked, np.ndarray):
        return bool(checked.any())
    if isinstance(checked, list):
        # Most polygons plainly hold a pixel, which is cheaper to see than to draw.
        return any(_plainly_has_pixels(polygon, size) for polygon in checked) or bool(_area(checked, size))
    counts = checked["counts"]
    return sum(counts[1::2]) > 0 if isinstance(counts, list) else bool(coco_mask.area(checked))


def run_lengths(counts: str | bytes) -> np.ndarray:
    """Return the lengths (N,) int64 of the runs in a compressed code; the first run is outside.

    The format is that of COCO's API: base 32, six bits a character from "0" on, the sixth for "more to come", the fifth
    of the last for the sign; from the fourth number on, the difference to the last but one.

    Raises:
        ValueError: the code is cut off, or holds a character or number that no code has.
    """
    text = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    codes = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - ord("0")
    if not len(codes):
        return np.zeros(0, dtype=np.int64)
    if codes.min() < 0 or codes.max() > 0x3F or (isinstance(counts, str) and not counts.isascii()):
        raise ValueError("holds a character that no code has")
    ends = np.flatnonzero(codes < 0x20)
    if not len(ends) or ends[-1] != len(codes) - 1:
        raise ValueError("is cut off within a number")
    begins = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - begins + 1
    if lengths.max() > _MAX_DIGITS:
        raise ValueError("holds a number that is too large")
    digit = np.arange(len(codes)) - np.repeat(begins, lengths)
    values = np.add.reduceat((codes & 0x1F) << (5 * digit), begins)
    values -= np.where((codes[ends] & 0x10) != 0, np.int64(1) << (5 * lengths), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _checked_rle(rle: Mapping[str, Any], size: tuple[int, int], prefix: str) -> dict[str, Any]:
    if "size" not in rle or "counts" not in rle:
        missing = "'size'" if "size" not in rle else "'counts'"
        raise DatasetError(f"{prefix}RLE: missing {missing}, needs 'size' [height, width] and 'counts'")
    sides = rle["size"]
    found = [whole_number(side) for side in sides] if isinstance(sides, (list, tuple)) and len(sides) == 2 else None
    if found != list(size):
        raise DatasetError(f"{prefix}RLE has size {shown(sides)}, its image (height, width) = {list(size)}")
    counts = rle["counts"]
    try:
        runs = run_lengths(counts) if isinstance(counts, (str, bytes)) else _plain_runs(counts)
    except ValueError as error:
        raise DatasetError(f"{prefix}RLE counts cannot be decoded: the code {error}: {shown(counts)}") from error
    total, expected = int(runs.sum()), size[0] * size[1]
    if total != expected or (len(runs) and runs.min() < 0):
        what = f"hold a negative run, {runs.min()}" if len(runs) and runs.min() < 0 else f"sum to {total}"
        raise DatasetError(f"{prefix}RLE counts {what}, expected {size[0]} x {size[1]} = {expected}")
    if len(runs) > 1 and not runs[1:].all():
        counts = _without_empty_runs(runs)  # pycocotools stops comparing at a run of length 0
    elif not isinstance(counts, (str, bytes)):
        counts = runs.tolist()
    return {"size": list(size), "counts": counts}


def _plain_runs(counts: Any) -> np.ndarray:
    if not isinstance(counts, (list, tuple, np.ndarray)):
        raise ValueError(f"must be text or a list of run lengths, but is of type {type(counts).__name__}")
    try:
        runs = np.asarray(counts)
    except (ValueError, OverflowError):
        runs = np.asarray("ragged")
    if runs.ndim != 1 or (len(runs) and runs.dtype.kind not in "iuf"):
        raise ValueError("must be a list of whole numbers")
    # Numbers beyond an image are none that could add up; they are not converted, which would wrap around.
    if len(runs) and not (np.abs(runs.astype(np.float64)) <= MAX_PIXELS).all():
        raise ValueError("holds a number that is too large")
    whole = runs.astype(np.int64)
    if (whole != runs).any():
        raise ValueError("must be a list of whole numbers")
    return whole


def _without_empty_runs(runs: np.ndarray) -> list[int]:
    """Return the runs of the same mask with none of length 0 but the first."""
    inside = np.arange(len(runs)) % 2 == 1
    kept = runs > 0
    runs, inside = runs[kept], inside[kept]
    begins = np.flatnonzero(np.diff(inside, prepend=~inside[:1]))
    merged = np.add.reduceat(runs, begins).tolist() if len(runs) else []
    return [0, *merged] if len(inside) and inside[0] else merged


def _is_bitmap(segmentation: Sequence[Any], size: tuple[int, int]) -> bool:
    # A list of H rows of W numbers could be H polygons; only a bitmap has nothing but zeros and ones.
    if len(segmentation) != size[0] or not all(isinstance(row, (list, tuple)) for row in segmentation):
        return False
    return all(len(row) == size[1] for row in segmentation) and all(
        isinstance(value, (int, float)) and value in (0, 1) for row in segmentation for value in row
    )


def _checked_polygons(polygons: Sequence[Any], size: tuple[int, int], prefix: str) -> list[Any]:
    limit = _FAR + _FAR_SIDES * max(size)
    valid, lengths = [], []
    for polygon in polygons:
        if not isinstance(polygon, (list, tuple, np.ndarray)):
            raise DatasetError(f"{prefix}a polygon must be a list of numbers (x, y, x, y, …), found {shown(polygon)}")
        lengths.append(len(polygon))
        if len(polygon) >= _MIN_POLYGON_NUMBERS and len(polygon) % 2 == 0:
            numbers = polygon.tolist() if isinstance(polygon, np.ndarray) else polygon
            _check_numbers(numbers, limit, prefix)
            valid.append(list(numbers))
        elif len(polygon) % 2:
            raise DatasetError(f"{prefix}a polygon needs an x and a y for each point, found {len(polygon)} numbers")
    if not valid:
        found = lengths[:8] if len(lengths) > 1 else lengths[0]
        raise DatasetError(f"{prefix}a polygon needs at least 3 points (6 numbers, x and y), found {found} numbers")
    return valid


def _check_numbers(numbers: Sequence[Any], limit: int, prefix: str) -> None:
    try:
        # In C over what may be millions of points: a NaN spoils the sum, where it may pass a comparison.
        is_near = -limit <= min(numbers) and max(numbers) <= limit
        is_finite = math.isfinite(sum(numbers)) if is_near else all(map(math.isfinite, numbers))
    except (TypeError, OverflowError, ValueError):
        is_near = is_finite = False
    if not is_finite:
        raise DatasetError(f"{prefix}a polygon holds something else than finite numbers: {shown(numbers)}")
    if not is_near:
        far = max(numbers, key=abs)
        raise DatasetError(
            f"{prefix}a polygon leaves the image by far: coordinate {far:g}, expected at most {limit} pixels"
        )
    if len(numbers) * limit > _MAX_OUTLINE:
        points = np.asarray(numbers, dtype=np.float64).reshape(-1, 2)
        outline = float(np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum())
        if outline > _MAX_OUTLINE:
            raise DatasetError(f"{prefix}a polygon is {outline:.0f} pixels long, at most {_MAX_OUTLINE} can be drawn")


def _plainly_has_pixels(polygon: Sequence[float], size: tuple[int, int]) -> bool:
    xs, ys = polygon[0::2], polygon[1::2]
    left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    if left < 0 or top < 0 or right > size[1] or bottom > size[0] or right - left < 3 or bottom - top < 3:
        return False
    twice = sum(map(operator.mul, xs, ys[1:])) - sum(map(operator.mul, ys, xs[1:]))
    twice += xs[-1] * ys[0] - ys[-1] * xs[0]
    return abs(twice) > 2 * (right - left + bottom - top)  # no sliver between the pixels


def _area(polygons: list[Any], size: tuple[int, int]) -> int:
    return int(coco_mask.area(encode_segmentation(polygons, size)))
