"""Writing and checking the files of a prepared data set; none is ever seen half-written."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

_TEMPORARY_SUFFIX = ".tmp"
_JPEG_QUALITY = 95


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file, which then takes the place of ``path``."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY_SUFFIX}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Remove what a killed run left below ``folder``."""
    for path in folder.rglob(f".*{_TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Compact JSON text."""
    data = json.dumps(content, separators=(",", ":")).encode()
    write_atomic(path, lambda temporary: temporary.write_bytes(data))


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """Write pixels (H, W) uint8 or uint16, or RGB (H, W, 3) uint8, as the name's ending says: .png, .tif or .jpg."""
    if path.suffix == ".tif":
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "TIFF", compression="tiff_lzw")
        data = buffer.getvalue()
    else:
        options = (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY) if path.suffix == ".jpg" else ()
        done, encoded = cv2.imencode(path.suffix, pixels[..., ::-1] if pixels.ndim == 3 else pixels, options)
        assert done, path
        data = encoded.tobytes()
    write_atomic(path, lambda temporary: temporary.write_bytes(data))


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG of pixels (H, W) or RGB (H, W, 3), uint8."""
    done, encoded = cv2.imencode(".png", pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    assert done
    return encoded.tobytes()


def link_or_copy(source: Path, target: Path) -> bool:
    """Make ``target`` the same file as ``source``, or a copy on another disk; False where it was there already."""
    if target.is_file() and target.stat().st_size == source.stat().st_size:
        return False

    def place(temporary: Path) -> None:
        try:
            os.link(source, temporary)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, temporary)

    write_atomic(target, place)
    return True


def is_intact(path: Path, size: tuple[int, int]) -> bool:
    """Whether ``path`` is a whole picture of ``size`` (height, width)."""
    try:
        with Image.open(path) as image:
            if image.size != size[::-1]:
                return False
            # PNG files carry checksums, which are cheaper to compare than pixels are to decode.
            (image.verify if image.format == "PNG" else image.load)()
    except (OSError, SyntaxError, ValueError, EOFError):
        return False
    return True


def read_json_if_whole(path: Path) -> Any:
    """The content of a JSON file, None where it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
