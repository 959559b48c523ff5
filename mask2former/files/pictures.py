"""Write pictures, pixels (H, W) uint8 or uint16, or RGB (H, W, 3) uint8, to PNG, JPEG or TIFF files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mask2former.errors import InputError
from mask2former.files.atomic import write_bytes_atomic
from mask2former.files.images import opened_image
from mask2former.files.inputs import PathLike

# Runs are what label maps are made of; photographs become smaller, too, and in a quarter of the time.
_PNG_OPTIONS = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_SAME = {".jpeg": ".jpg", ".tiff": ".tif"}
_OPTIONS = {".png": _PNG_OPTIONS, ".jpg": (cv2.IMWRITE_JPEG_QUALITY, 95)}


def encode_picture(pixels: np.ndarray, suffix: str = ".png", *, options: Sequence[int] | None = None) -> bytes:
    """Return the bytes of a file of pixels.

    ``suffix`` is one of PICTURE_SUFFIXES; ``options`` are OpenCV's, except for TIFF.
    """
    suffix = _SAME.get(suffix.lower(), suffix.lower())
    if suffix == ".tif":
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "TIFF", compression="tiff_lzw")
        return buffer.getvalue()
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    is_done, encoded = cv2.imencode(suffix, pixels, _OPTIONS[suffix] if options is None else options)
    assert is_done, suffix
    return encoded.tobytes()


def write_picture(pixels: np.ndarray, path: PathLike, *, options: Sequence[int] | None = None) -> None:
    """Write pixels atomically in the format of the suffix, one of PICTURE_SUFFIXES.

    Raises:
        InputError: the file cannot be written.
    """
    write_bytes_atomic(encode_picture(pixels, Path(path).suffix, options=options), path, is_durable=False)


def is_intact(path: Path, size: tuple[int, int]) -> bool:
    """Return whether ``path`` is a whole picture of ``size`` (height, width)."""
    try:
        with opened_image(path) as image:
            if image.size != size[::-1]:
                return False
            # PNG files carry checksums, which are cheaper to compare than pixels are to decode.
            (image.verify if image.format == "PNG" else image.load)()
    except InputError:
        return False
    return True
