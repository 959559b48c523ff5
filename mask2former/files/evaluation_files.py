"""Reading ground truth and predictions with errors that name the file, and writing them atomically."""

from __future__ import annotations

import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mask2former.errors import DatasetError, InputError
from mask2former.files.panoptic_png import decode_panoptic_png
from mask2former.structures.metadata import Metadata
from mask2former.structures.panoptic_ids import rgb_to_id

PathLike = str | os.PathLike[str]


def metadata_field(metadata: Metadata, key: str, evaluator: str) -> Any:
    """A metadata value that an evaluator cannot do without.

    Raises:
        DatasetError: it is missing or None.
    """
    value = metadata.get(key)
    if value is None:
        known = sorted(metadata.as_dict())
        raise DatasetError(f"{evaluator}: data set {metadata.name!r} has no metadata {key!r}, it has {known}")
    return value


def read_json(path: PathLike, *, error: type[InputError] = DatasetError) -> Any:
    """Content of a JSON file.

    Raises:
        DatasetError (or ``error``): it is missing or not JSON.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError as cause:
        raise error(f"{path}: cannot be read: {cause.strerror or cause}") from cause
    except ValueError as cause:
        raise error(f"{path}: not a valid JSON file: {cause}") from cause


def read_label_map(path: PathLike, *, error: type[InputError] = DatasetError) -> np.ndarray:
    """Label map (H, W) int64 of a one-channel image file (8 or 16 bit, or palette indices).

    Raises:
        DatasetError (or ``error``): the file is missing, corrupt or has several channels.
    """
    pixels = _read_image(path, error)
    if pixels.ndim != 2:
        raise error(f"{path}: a label map has one channel, found an image of shape {pixels.shape}")
    return pixels.astype(np.int64)


def read_panoptic_ids(path: PathLike, *, error: type[InputError] = DatasetError) -> np.ndarray:
    """Segment ids (H, W) int32 of a COCO panoptic PNG.

    Raises:
        DatasetError (or ``error``): the file is missing, corrupt or not RGB.
    """
    try:
        ids = decode_panoptic_png(Path(path).read_bytes())
    except OSError:
        ids = None  # which is told below
    if ids is None:
        pixels = _read_image(path, error)
        if pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
            raise error(f"{path}: segment ids are coded in RGB, found an image of shape {pixels.shape}")
        ids = rgb_to_id(np.ascontiguousarray(pixels[..., :3]))
    return ids


def _read_image(path: PathLike, error: type[InputError]) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except FileNotFoundError as cause:
        raise error(f"{path}: file not found") from cause
    # Pillow reports broken files with any of these.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as cause:
        raise error(f"{path}: cannot be read as an image: {cause}") from cause


def write_json(content: Any, path: PathLike) -> None:
    """Write JSON; a reader sees the old file or the whole new one."""
    _write_atomically(json.dumps(content).encode(), Path(path))


def write_png(pixels: np.ndarray, path: PathLike) -> None:
    """Write an image (H, W) or (H, W, 3) uint8 as PNG; a reader sees the old file or the whole new one."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    _write_atomically(buffer.getvalue(), Path(path))


def _write_atomically(data: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp files are private to their owner; results are as any other file.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
