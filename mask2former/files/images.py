"""Reading images and label files; whatever is wrong with a file is said with its name."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from mask2former.errors import DatasetError
from mask2former.files.panoptic_png import decode_panoptic_png
from mask2former.structures import rgb_to_id

FORMATS = ("BGR", "RGB", "L")

# What Pillow raises on files that are missing, cut off or damaged.
_READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)
_EXIF_ORIENTATION = 0x0112
_TURNED_ORIENTATIONS = (5, 6, 7, 8)  # by a quarter: height and width change places


def read_image(path: str | os.PathLike[str], image_format: str = "BGR") -> np.ndarray:
    """The image as the camera meant it (EXIF orientation applied): (H, W, 3) uint8, or (H, W, 1) for "L".

    Raises:
        DatasetError: the file is missing, cut off, damaged, or no image.
    """
    if image_format not in FORMATS:
        raise ValueError(f"image format must be one of {', '.join(FORMATS)}, found {image_format!r}")
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(_EXIF_ORIENTATION, 1) != 1
            upright = ImageOps.exif_transpose(image) if turned else image
            mode = "L" if image_format == "L" else "RGB"
            array = np.asarray(upright if upright.mode == mode else upright.convert(mode))
    except _READ_ERRORS as error:
        raise _unreadable(path, "image", error) from error
    if image_format == "L":
        return array[..., None]
    return cv2.cvtColor(array, cv2.COLOR_RGB2BGR) if image_format == "BGR" else array


def read_image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) of the image that ``read_image`` returns, without decoding it.

    Raises:
        DatasetError: the file is missing or no image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_EXIF_ORIENTATION, 1) in _TURNED_ORIENTATIONS
    except _READ_ERRORS as error:
        raise _unreadable(path, "image", error) from error
    return (width, height) if turned else (height, width)


def read_label_map(path: str | os.PathLike[str]) -> np.ndarray:
    """Class ids (H, W) uint8, or int32 where the file has more than eight bits.

    Raises:
        DatasetError: the file is missing, cut off, damaged, or has more than one channel.
    """
    try:
        with Image.open(path) as image:
            array = np.asarray(image)
    except _READ_ERRORS as error:
        raise _unreadable(path, "label", error) from error
    if array.ndim != 2 or array.dtype.kind not in "uib":
        raise DatasetError(f"label file must have one channel of class ids, found {_describe(array)}: {path}")
    return array.astype(np.uint8 if array.dtype.itemsize == 1 else np.int32, copy=False)


def read_panoptic_ids(path: str | os.PathLike[str]) -> np.ndarray:
    """Segment ids (H, W) int32 of a panoptic PNG: R + 256 G + 256² B.

    Raises:
        DatasetError: the file is missing, cut off, damaged, or not coloured.
    """
    try:
        ids = decode_panoptic_png(Path(path).read_bytes())
        if ids is not None:
            return ids
        with Image.open(path) as image:
            array = np.asarray(image)
    except _READ_ERRORS as error:
        raise _unreadable(path, "panoptic segmentation", error) from error
    if array.ndim != 3 or array.shape[2] < 3 or array.dtype != np.uint8:
        raise DatasetError(f"panoptic file must code segment ids as RGB, found {_describe(array)}: {path}")
    return rgb_to_id(array)


def _describe(array: np.ndarray) -> str:
    channels = 1 if array.ndim == 2 else array.shape[-1]
    return f"{channels} channel{'s' if channels > 1 else ''} of {array.dtype}"


def _unreadable(path: str | os.PathLike[str], role: str, error: BaseException) -> DatasetError:
    if isinstance(error, FileNotFoundError):
        return DatasetError(f"{role} file not found: {path}")
    reason = str(error).replace(str(path), "").strip(" :'\"") or type(error).__name__
    return DatasetError(f"{role} file cannot be read: {path} ({reason})")
