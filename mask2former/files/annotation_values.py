"""What entries of annotation files hold — ids, sizes, flags, names — taken where one meaning is plain, else refused.

Table libraries write whole numbers as 1.0, spreadsheets as text, and exports null for what they do not know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from mask2former.errors import DatasetError
from mask2former.structures.segmentations import MAX_PIXELS, shown, whole_number

Id = int | str

_MAX_ID = 2**63 - 1  # what arrays can hold
_MAX_NAME = 200  # bytes; file systems take 255, and temporary names are longer
_FLAGS = {"true": True, "false": False}


def plain_id(value: Any, key: str = "id") -> Id:
    """A whole number, or text; 1.0 is 1.

    Raises:
        DatasetError: it is neither.
    """
    if isinstance(value, str):
        return value
    number = whole_number(value)
    if number is None or abs(number) > _MAX_ID:
        raise DatasetError(f"{key!r} must be a whole number or text, found {shown(value)}")
    return number


def numbered_id(value: Any, key: str) -> int:
    """A whole number, which may be written as 1.0 or "1".

    Raises:
        DatasetError: it is none.
    """
    number = value if type(value) is int else whole_number(value)
    if number is None or not -_MAX_ID <= number <= _MAX_ID:
        raise DatasetError(f"{key!r} must be a whole number, found {shown(value)}")
    return number


def listed_id(value: Any, listed: Mapping[Any, Any]) -> Id | None:
    """The id in ``listed`` that ``value`` means, a number as it stands or as text; None where there is none."""
    if isinstance(value, str):
        if value in listed:
            return value
        number = whole_number(value)
        return number if number in listed else None
    number = whole_number(value)
    if number is None or number in listed:
        return number
    return str(number) if str(number) in listed else None


def plain_flag(value: Any, key: str) -> int:
    """0 or 1; null is 0.

    Raises:
        DatasetError: it is something else.
    """
    number = whole_number(value)
    if number in (0, 1):
        return number
    if value is None or isinstance(value, bool):
        return int(bool(value))
    if isinstance(value, str) and value.strip().lower() in _FLAGS:
        return int(_FLAGS[value.strip().lower()])
    raise DatasetError(f"{key!r} must be 0 or 1, found {shown(value)}")


def plain_size(entry: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) of an entry.

    Raises:
        DatasetError: a side is missing or no whole number of pixels, or the picture would be too large.
    """
    sides = []
    for key in ("height", "width"):
        side = whole_number(entry.get(key))
        if side is None or side < 1:
            raise DatasetError(f"{key!r} must be a whole number of pixels, found {shown(entry.get(key))}")
        sides.append(side)
    if sides[0] * sides[1] > MAX_PIXELS:
        raise DatasetError(f"(height, width) = {tuple(sides)} has more than {MAX_PIXELS} pixels")
    return sides[0], sides[1]


def plain_number(value: Any) -> float | None:
    """A finite number that is at least 0, also as text; None for anything else."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and 0 <= value <= _MAX_ID else None  # no comparison holds for NaN


def plain_box(box_xywh: Any) -> list[float]:
    """Left, top, width and height, finite and of no negative extent.

    Raises:
        DatasetError: it is something else.
    """
    is_list = isinstance(box_xywh, (list, tuple)) and len(box_xywh) == 4
    if not is_list or not all(_is_finite(number) for number in box_xywh):
        raise DatasetError(f"bbox must be four finite numbers (x, y, width, height), found {shown(box_xywh)}")
    if min(box_xywh[2:]) < 0:
        raise DatasetError(f"bbox has a negative width or height: {shown(box_xywh)}")
    return list(box_xywh)


def plain_name(value: Any, key: str = "file_name") -> str:
    """The name of a file.

    Raises:
        DatasetError: it is no text that can be a name.
    """
    if not isinstance(value, str) or not value.strip() or "\0" in value or not _is_encodable(value):
        raise DatasetError(f"{key!r} must be the name of a file, found {shown(value)}")
    return value


def located(folder: Path, name: str) -> Path:
    """Where a file lies that an annotation file names; on Windows backslashes part the folders."""
    path = folder / name
    return folder / name.replace("\\", "/") if "\\" in name and not path.exists() else path


def safe_name(name: str, number: int, *, suffix: str) -> str:
    """A path below an output folder for the results of what a file calls ``name``; the number where that leads out."""
    path = PurePosixPath(name.replace("\\", "/")).with_suffix(suffix)
    is_below = not path.is_absolute() and ".." not in path.parts and ":" not in path.parts[0]
    is_short = all(len(part.encode()) <= _MAX_NAME for part in path.parts)
    return str(path) if is_below and is_short else f"{number:012d}{suffix}"


def _is_finite(number: Any) -> bool:
    is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
    return is_number and abs(number) <= _MAX_ID and math.isfinite(number)


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates
        return False
    return True
