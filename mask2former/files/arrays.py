"""Arrays in files: NumPy's ``.npy`` and ``.npz``, and TIFF of any number of channels and any type of number.

TIFF is read by tifffile, in the extra ``channels``; pages of one size are channels, too.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mask2former.errors import DatasetError
from mask2former.files.inputs import ARRAY_SUFFIXES, PathLike, open_file
from mask2former.structures.segmentations import MAX_PIXELS

TIFF_SUFFIXES = (".tif", ".tiff")
_NAMED = "image"  # the array to take where a file holds several
_MAX_BYTES = 1 << 33

Result = TypeVar("Result")


def is_array_file(path: Any) -> bool:
    """Return whether a path is called as a file of NumPy."""
    return _is_called(path, ARRAY_SUFFIXES)


def is_tiff(path: Any) -> bool:
    """Return whether a path is called as a TIFF file."""
    return _is_called(path, TIFF_SUFFIXES)


def read_array(path: PathLike, *, num_channels: int = 0) -> np.ndarray:
    """Return the numbers (H, W, C) of a file as stored.

    ``num_channels``, where it is known, tells which axis of an array of NumPy holds them; else it is the shorter one of
    the first and the last.

    Raises:
        DatasetError: the file cannot be read, or holds something else than one picture of numbers.
    """
    if not is_tiff(path):
        return channels_last(_read_numpy(path), num_channels=num_channels, name=os.fspath(path))
    array, axes = _read_tiff(path, lambda series: (series.asarray(), series.axes))
    return channels_last(array, axes, name=os.fspath(path))


def array_form(path: PathLike) -> tuple[int, int, int]:
    """Return (height, width, channels) of what ``read_array`` returns, without decoding a TIFF file.

    Raises:
        DatasetError: as ``read_array``.
    """
    if not is_tiff(path):
        return channels_last(_read_numpy(path), name=os.fspath(path)).shape  # type: ignore[return-value]
    shape, axes = _read_tiff(path, lambda series: (series.shape, series.axes))
    return channels_last(np.broadcast_to(np.uint8(0), shape), axes, name=os.fspath(path)).shape  # type: ignore[return-value]


def channels_last(array: np.ndarray, axes: str = "", *, num_channels: int = 0, name: str) -> np.ndarray:
    """Return an array of one picture as (H, W, C); ``axes`` names its axes, Y and X those of the picture.

    Raises:
        DatasetError: it is no picture of numbers, or too large; the message begins with ``name``.
    """
    if array.dtype.kind not in "uifb":
        raise DatasetError(f"{name}: expected numbers, found values of type {array.dtype}")
    if array.ndim > 3:
        single = [i for i, length in enumerate(array.shape) if length == 1 and axes[i : i + 1] not in ("Y", "X")]
        array, axes = array.squeeze(tuple(single)), "".join(axis for i, axis in enumerate(axes) if i not in single)
    if array.ndim == 2:
        array, axes = array[..., None], ""
    if array.ndim != 3:
        raise DatasetError(f"{name}: expected an array (H, W), (H, W, C) or (C, H, W), found shape {array.shape}")
    others = [place for place, axis in enumerate(axes) if axis not in "YX"]
    first, _, last = array.shape
    if len(others) == 1:
        is_first = others[0] == 0
    else:
        is_first = first == num_channels != last if num_channels else first < last
    array = np.moveaxis(array, 0, -1) if is_first else array
    if not 0 < array.shape[0] * array.shape[1] <= MAX_PIXELS or not array.shape[2]:
        raise DatasetError(f"{name}: expected 1..{MAX_PIXELS} pixels, found shape {array.shape}")
    return array


def _is_called(path: Any, suffixes: tuple[str, ...]) -> bool:
    return isinstance(path, (str, os.PathLike)) and Path(path).suffix.lower() in suffixes


def _read_numpy(path: PathLike) -> np.ndarray:
    """Return the array of a file: mapped into memory, if it is not packed. Nothing in it is executed."""
    with open_file(path, error=DatasetError):  # which says best what is missing
        pass
    try:
        if Path(path).suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
            if size > _MAX_BYTES:
                raise DatasetError(f"{path}: {size >> 30} GiB are too large for an image")
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            names = list(found.files)
            if len(names) != 1 and _NAMED not in names:
                raise DatasetError(f"{path}: holds the arrays {names[:10]}, expected one, or one called {_NAMED!r}")
            return found[_NAMED if _NAMED in names else names[0]]
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, MemoryError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path}: cannot be read as an array of NumPy: {str(error)[:200]}") from error


def _read_tiff(path: PathLike, read: Callable[[Any], Result]) -> Result:
    """Return what ``read`` makes of the first series of pages, which are of one size and type."""
    try:
        import tifffile
    except ImportError as error:
        raise DatasetError(f"{path}: TIFF of channels needs tifffile: pip install 'mask2former[channels]'") from error
    with open_file(path, error=DatasetError) as file:
        try:
            with tifffile.TiffFile(file) as tiff:
                return read(tiff.series[0])
        except Exception as error:  # whatever damaged bytes lead its decoders to
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise DatasetError(f"{path}: cannot be read as a TIFF image: {reason}") from error
