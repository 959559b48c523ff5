"""Images of any number of channels, read as stored: no scaling to bytes, no order of colours (``INPUT.CHANNELS``)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from mask2former.errors import ConfigError, DatasetError, InputError
from mask2former.files.arrays import array_form, channels_last, is_array_file, is_tiff, read_array
from mask2former.files.images import ImageInput, opened_image, stored_numbers
from mask2former.files.inputs import PathLike

_RANGE = (2, 98)  # percentiles that a picture shows as black and white
_WIDE_MODES = ("F", "I")  # Pillow's, of numbers without a defined range


def read_channels(image: ImageInput, num_channels: int) -> np.ndarray:
    """Return an image (H, W, C) of ``num_channels``: uint8 where it has bytes, else float32.

    Args:
        image: as ``to_rgb_array`` takes it, and the path of a NumPy or TIFF file; an array (H, W), (H, W, C) or
            (C, H, W), or a tensor (C, H, W).
        num_channels: as many as the image must have.

    Raises:
        InputError: it cannot be read, has another number of channels, or numbers that are NaN or infinite.
    """
    name = _name_of(image)
    if isinstance(image, (np.ndarray, torch.Tensor)):
        array = image.detach().cpu().float().numpy() if isinstance(image, torch.Tensor) else image
        array = channels_last(array, num_channels=num_channels, name=name)
    elif is_array_file(image) or is_tiff(image):
        array = read_array(image, num_channels=num_channels)  # type: ignore[arg-type]
    else:
        with opened_image(image) as opened:  # type: ignore[arg-type]
            array = channels_last(stored_numbers(opened), "YXS", name=name)
    if array.shape[2] != num_channels:
        raise DatasetError(f"{name}: has {array.shape[2]} channels, INPUT.CHANNELS is {num_channels}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DatasetError(f"{name}: holds numbers that are NaN or infinite; fill in what is missing")
    has_bytes = array.dtype.itemsize == 1 and array.dtype.kind in "ub"
    return np.array(array, dtype=np.uint8 if has_bytes else np.float32, order="C")  # no longer mapped to its file


def count_channels(path: PathLike) -> int:
    """Return how many channels a file has, where it cannot be read as a picture of bytes; 0 where it can.

    Raises:
        DatasetError: the file cannot be read.
    """
    if is_array_file(path):
        return array_form(path)[2]
    if not is_tiff(path):
        return 0
    try:
        with opened_image(path) as image:
            is_picture = image.mode not in _WIDE_MODES and getattr(image, "n_frames", 1) == 1
    except DatasetError:
        is_picture = False
    return 0 if is_picture else array_form(path)[2]


def channels_to_rgb(image: np.ndarray, shown: Sequence[int] = ()) -> np.ndarray:
    """Return a picture (H, W, 3) uint8 RGB of an image (H, W, C).

    Shows the channels ``shown``, three or one, by default the first three or the first; the range between the
    percentiles 2 and 98 of each is black to white.

    Raises:
        ConfigError: there are no such channels.
    """
    chosen = list(shown) or ([0, 1, 2] if image.shape[2] >= 3 else [0])
    if len(chosen) not in (1, 3) or not all(0 <= channel < image.shape[2] for channel in chosen):
        raise ConfigError(f"INPUT.SHOWN_CHANNELS: expected one or three of 0..{image.shape[2] - 1}, found {chosen}")
    picked = image[..., chosen].astype(np.float32)
    low, high = np.percentile(picked, _RANGE, axis=(0, 1)).astype(np.float32)
    scaled = (picked - low) / np.maximum(high - low, np.finfo(np.float32).tiny) * 255
    return np.ascontiguousarray(np.broadcast_to(scaled.clip(0, 255).astype(np.uint8), (*image.shape[:2], 3)))


def _name_of(image: Any) -> str:
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    kinds = {np.ndarray: "image array", torch.Tensor: "image tensor", Image.Image: "PIL image"}
    found = next((name for kind, name in kinds.items() if isinstance(image, kind)), None)
    if found is None and not isinstance(image, (bytes, bytearray, memoryview)):
        raise InputError(f"image: expected a path, bytes, PIL image, array or tensor, found {type(image).__name__}")
    return found or "encoded image"
