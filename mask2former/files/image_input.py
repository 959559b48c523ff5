"""Images as people have them — path, encoded bytes, PIL, array, tensor — as one thing: (H, W, 3) uint8 RGB."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from mask2former.errors import InputError

ImageInput: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | np.ndarray | torch.Tensor"
)

_CHANNEL_ORDERS = ("RGB", "BGR")
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


def to_rgb_array(image: ImageInput, *, channel_order: str = "RGB") -> np.ndarray:
    """Bring an image of any accepted kind to (H, W, 3) uint8 RGB.

    image: a path; encoded bytes; a PIL image; an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); or a tensor (3, H, W)
        or (1, H, W). Arrays and tensors hold 0..255, or are uint16 and hold 0..65535; `channel_order` is theirs.
    Files and PIL images are turned upright by their EXIF orientation; transparency is dropped.
    Raises InputError naming the file or the shape where the image is missing, corrupt or of another form.
    """
    if channel_order not in _CHANNEL_ORDERS:
        raise InputError(f"channel_order: expected one of {', '.join(_CHANNEL_ORDERS)}, found {channel_order!r}")
    if isinstance(image, (str, os.PathLike)):
        return _decode_file(Path(image))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(image), name=f"encoded image of {len(image)} bytes")
    if isinstance(image, Image.Image):
        return _pil_to_rgb(image, name="PIL image")
    if isinstance(image, torch.Tensor):
        return _channels_last_to_rgb(_tensor_to_channels_last(image), channel_order, name="image tensor")
    if isinstance(image, np.ndarray):
        return _channels_last_to_rgb(image, channel_order, name="image array")
    raise InputError(f"image: expected a path, bytes, PIL image, array or tensor, found {type(image).__name__}")


def _decode_file(path: Path) -> np.ndarray:
    if path.is_dir():
        raise InputError(f"{path}: expected an image file, found a directory")
    try:
        with path.open("rb") as file:
            return _decode(file, name=str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _decode(file: Any, *, name: str) -> np.ndarray:
    try:
        with Image.open(file) as image:
            return _pil_to_rgb(image, name=name)
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: not an image, or of an unknown format") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: too large: {error}") from error
    # Pillow's decoders raise what the damaged bytes lead them to.
    except (OSError, SyntaxError, EOFError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name}: truncated or corrupt image: {error}") from error


def _pil_to_rgb(image: Image.Image, *, name: str) -> np.ndarray:
    if min(image.size) == 0:
        raise InputError(f"{name}: expected at least one pixel, found width x height {image.size}")
    image = ImageOps.exif_transpose(image)
    if image.mode in _SIXTEEN_BIT_MODES or image.mode in ("I", "F"):
        # Pillow would clip these to 0..255 instead of scaling them.
        return _channels_last_to_rgb(_wide_pixels(image), "RGB", name=name)
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    return np.array(image.convert("RGB"))


def _wide_pixels(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        return pixels
    return pixels.astype(np.uint16)


def _tensor_to_channels_last(image: torch.Tensor) -> np.ndarray:
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise InputError(f"image tensor: expected shape (3, H, W) or (1, H, W), found {tuple(image.shape)}")
    image = image.detach().cpu()
    return (image.float() if image.dtype == torch.bfloat16 else image).permute(1, 2, 0).numpy()


def _channels_last_to_rgb(pixels: np.ndarray, channel_order: str, *, name: str) -> np.ndarray:
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise InputError(f"{name}: expected shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), found {pixels.shape}")
    if pixels.size == 0:
        raise InputError(f"{name}: expected at least one pixel, found shape {pixels.shape}")
    pixels = _to_uint8(pixels, name=name)
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    pixels = pixels[:, :, :3]
    return np.ascontiguousarray(pixels if channel_order == "RGB" else pixels[:, :, ::-1])


def _to_uint8(pixels: np.ndarray, *, name: str) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.uint16:
        return np.rint(pixels / 257.0).astype(np.uint8)
    if pixels.dtype.kind not in "iuf":
        raise InputError(f"{name}: expected numbers in 0..255, found values of type {pixels.dtype}")
    low, high = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 255:
        raise InputError(f"{name}: expected values in 0..255, found {low:g}..{high:g} of type {pixels.dtype}")
    if pixels.dtype.kind == "f" and 0 < high <= 1:
        raise InputError(f"{name}: expected values in 0..255, found {low:g}..{high:g}; multiply them by 255")
    return np.rint(pixels).astype(np.uint8)
