"""Decode images for training, evaluation and prediction alike: upright, 8 bits a channel.

Files, encoded bytes and PIL images are turned by their EXIF orientation; transparency is dropped; of an animation or of
several pages the first is taken. 16 bits are scaled; ``bits`` says how many of them a camera uses. Wider integers and
floating-point numbers have no defined range: they must lie in 0..255.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import re
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, TypeAlias

import cv2
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from mask2former.errors import ConfigError, DatasetError, InputError
from mask2former.files.addresses import fetch_bytes, is_web_address
from mask2former.files.arrays import array_form, is_array_file, is_tiff
from mask2former.files.inputs import PathLike, open_file
from mask2former.files.png import MAX_DEFLATE_RATIO, count_pixel_bytes, num_pixel_bytes

ImageInput: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | np.ndarray | torch.Tensor"
)
FORMATS = ("BGR", "RGB", "L")
FULL_BITS = 16
_TWELVE_BITS = 12
_TIFF_MAGIC = 42
_MAX_FETCHED_BYTES = 1 << 28  # of an image at a web address

_CHANNEL_ORDERS = ("RGB", "BGR")
_ORIENTATION_TAG, _WIDTH_TAG, _HEIGHT_TAG = 0x0112, 0x0100, 0x0101
_QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that change height and width
_FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}  # by orientation, after the turn; OpenCV's codes
# Others need decoding to tell their size, or their orientation, which in a PNG may stand behind the pixels.
_FORMATS_WITH_TRUE_HEADERS = ("BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PPM", "TIFF", "WEBP")
_PAGE_DESCRIPTIONS = ("EPS", "WMF")  # programs, which Pillow would hand to an interpreter
_DEEP_MODES = ("RGB", "RGBA", "LA")  # of which Pillow keeps eight bits, however many the file has
# Pillow's names of how PNG files store a pixel: a letter for each channel, and bits where they are not 8.
_PNG_PIXEL = re.compile(r"(?P<bands>[1ILP]|LA|RGBA?)(;(?P<depth>\d+)B?)?")
_PREMULTIPLIED = {"RGBa": "RGBA", "La": "LA"}

logger = logging.getLogger(__name__)


def read_image(path: PathLike, image_format: str = "BGR", *, bits: int = FULL_BITS) -> np.ndarray:
    """Return the image of a file: (H, W, 3) uint8 in the order of ``image_format``, or (H, W, 1) for "L".

    ``bits``: how many bits of a 16-bit image are used; the largest number of that many bits becomes 255.

    Raises:
        DatasetError: the file is missing, cut off, damaged, not an image, or holds numbers out of range.
    """
    if image_format not in FORMATS:
        raise ValueError(f"image format must be one of {', '.join(FORMATS)}, found {image_format!r}")
    with opened_image(path) as image:
        pixels = _decode(image, name=_name_of(path), bits=bits)
    if image_format == "L":
        return (pixels if pixels.ndim == 2 else np.asarray(Image.fromarray(pixels).convert("L")))[..., None]
    if pixels.ndim == 2:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if image_format == "BGR" else pixels


def read_image_size(path: PathLike) -> tuple[int, int]:
    """Return (height, width) of the image that ``read_image`` returns, decoding it only if the header is not enough.

    Files of channels have that of ``read_channels``.

    Raises:
        DatasetError: the file is missing or not an image.
    """
    if is_array_file(path):
        return array_form(path)[:2]
    try:
        with opened_image(path) as image:
            size, orientation = _read_header(image)
    except DatasetError:
        if not is_tiff(path) or not os.path.isfile(path):
            raise
        return array_form(path)[:2]  # of channels, which Pillow does not know
    return size[::-1] if orientation in _QUARTER_TURNS else size


def exif_note(path: PathLike) -> str:
    """Return for an error about sizes how the file's EXIF orientation changes its size; empty if it has none."""
    with contextlib.suppress(InputError), opened_image(path) as image:
        if (orientation := _read_header(image)[1]) in _QUARTER_TURNS:
            return (
                f"; the file's EXIF orientation, {orientation}, turns it by a quarter: annotate images as they are "
                "seen, or store them upright without that tag"
            )
    return ""


def to_rgb_array(image: ImageInput, *, channel_order: str = "RGB", bits: int = FULL_BITS) -> np.ndarray:
    """Return an image of any accepted kind as (H, W, 3) uint8 RGB.

    Args:
        image: a path or http(s) address; encoded bytes; a PIL image; an array (H, W), (H, W, 1), (H, W, 3) or (H, W,
            4); or a tensor (3, H, W) or (1, H, W). Arrays and tensors hold 0..255, or are uint16.
        channel_order: "RGB" or "BGR", of arrays and tensors.
        bits: as in ``read_image``.

    Raises:
        InputError: the image is missing, corrupt or of another form; the message names the file or the shape.
    """
    if channel_order not in _CHANNEL_ORDERS:
        raise InputError(f"channel_order: expected one of {', '.join(_CHANNEL_ORDERS)}, found {channel_order!r}")
    if isinstance(image, np.ndarray):
        return _array_to_rgb(image, channel_order, name="image array", bits=bits)
    if isinstance(image, torch.Tensor):
        return _array_to_rgb(_tensor_to_array(image), channel_order, name="image tensor", bits=bits)
    if not isinstance(image, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)):
        raise InputError(f"image: expected a path, bytes, PIL image, array or tensor, found {type(image).__name__}")
    with opened_image(image) as opened:
        pixels = _decode(opened, name=_name_of(image), bits=bits)
    if pixels.ndim == 2:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    return np.require(pixels, requirements=["C", "W"])


@contextlib.contextmanager
def opened_image(
    source: PathLike | bytes | bytearray | memoryview | Image.Image, *, error: type[InputError] = DatasetError
) -> Iterator[Image.Image]:
    """Yield the image of a file, of encoded bytes or of Pillow, not yet decoded.

    Raises:
        DatasetError (or ``error``): what goes wrong in Pillow here or in the block, with the name of the image.
    """
    name = _name_of(source)
    try:
        if isinstance(source, Image.Image):
            yield _checked(source, name)
            return
        with _binary(source, error) as file, Image.open(file) as image:
            yield _checked(image, name)
    except InputError:
        raise
    except UnidentifiedImageError as cause:
        raise error(f"{name}: cannot be read as an image: not an image, or of an unknown format") from cause
    except Image.DecompressionBombError as cause:
        raise error(f"{name}: cannot be read as an image: too large: {cause}") from cause
    except Exception as cause:  # Pillow's decoders raise whatever damaged bytes lead them to
        reason = str(cause).replace(name, "").strip(" :'\"") or type(cause).__name__
        raise error(f"{name}: cannot be read as an image: truncated or corrupt: {reason}") from cause


def stores_sixteen_bits(image: Image.Image) -> bool:
    """Return whether an image that is not decoded yet has 16 bits a channel."""
    return ";16" in _raw_mode(image)


def stored_pixels(image: Image.Image) -> np.ndarray:
    """Return the numbers (H, W) or (H, W, C) of an open image as stored, palette indices included, but upright."""
    _load(image)
    pixels = np.asarray(image)
    pixels = pixels.astype(np.uint8) if pixels.dtype == bool else pixels
    return _turned(pixels.astype(pixels.dtype.newbyteorder("="), copy=False), _orientation(image))


def stored_numbers(image: Image.Image) -> np.ndarray:
    """Return ``stored_pixels`` of an image not yet decoded, with all 16 bits of colours that have them."""
    if stores_sixteen_bits(image) and image.mode in _DEEP_MODES:
        colours = _read_deep_colours(image)
        if colours is not None:
            return _turned(colours, _orientation(image))
    return stored_pixels(image)


def _name_of(source: Any) -> str:
    if isinstance(source, Image.Image):
        return "PIL image"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"encoded image of {len(source)} bytes"
    return os.fspath(source)


def _binary(source: PathLike | bytes | bytearray | memoryview, error: type[InputError]) -> BinaryIO:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if isinstance(source, str) and is_web_address(source):
        return io.BytesIO(fetch_bytes(source, max_bytes=_MAX_FETCHED_BYTES, error=error))
    return open_file(source, error=error)


def _checked(image: Image.Image, name: str) -> Image.Image:
    if min(image.size) == 0:
        raise DatasetError(f"{name}: expected at least one pixel, found width x height {image.size}")
    if image.format in _PAGE_DESCRIPTIONS:
        raise DatasetError(f"{name}: cannot be read as an image: {image.format} describes a page and holds no pixels")
    if image.format != "MPO" and getattr(image, "is_animated", False):
        _say_that_frames_are_left_out(name)
    return image


@functools.lru_cache(maxsize=10_000)
def _say_that_frames_are_left_out(name: str) -> None:
    """Log this once in a process, whatever the number of epochs."""
    logger.warning("%s: holds several frames or pages, the first is used", name)


def _read_header(image: Image.Image) -> tuple[tuple[int, int], int]:
    """Return (height, width) as stored, and the EXIF orientation."""
    if image.format == "TIFF":  # turned as it is decoded; which size Pillow names before depends on its release
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        return (tags[_HEIGHT_TAG], tags[_WIDTH_TAG]), tags.get(_ORIENTATION_TAG, 1)
    if image.format not in _FORMATS_WITH_TRUE_HEADERS:
        _load(image)
    return (image.height, image.width), _orientation(image)


def _orientation(image: Image.Image) -> int:
    """Return the orientation 1..8; 1, upright, also if the EXIF data are damaged, because the pixels are not."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # as many kinds as there are ways to damage them
        return 1
    return orientation if orientation in range(1, 9) else 1


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation in _QUARTER_TURNS:
        pixels = cv2.transpose(pixels)
    return cv2.flip(pixels, _FLIPS[orientation]) if orientation in _FLIPS else pixels


def _decode(image: Image.Image, *, name: str, bits: int) -> np.ndarray:
    """Return pixels (H, W) of a grey image, otherwise (H, W, 3) RGB; uint8, upright."""
    stored_as = _raw_mode(image)
    if stores_sixteen_bits(image) and image.mode in _DEEP_MODES:
        colours = _read_deep_colours(image)
        if colours is not None:
            return _turned(_to_bytes(colours, name=name, bits=bits), _orientation(image))
    _load(image)
    orientation = _orientation(image)
    if image.mode.startswith("I") or image.mode == "F":  # Pillow would clip these to 0..255
        numbers, bits = _wide_numbers(image, stored_as, bits)
        return _turned(_to_bytes(numbers, name=name, bits=bits), orientation)
    if image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    return _turned(np.asarray(image if image.mode == mode else image.convert(mode)), orientation)


def _load(image: Image.Image) -> None:
    """Decode; of a PNG whose pixels end early, Pillow would leave the rest black."""
    pixel = _PNG_PIXEL.fullmatch(_raw_mode(image)) if image.format == "PNG" else None
    file: Any = image.fp if pixel else None  # type: ignore[attr-defined]
    if pixel is None or file is None or getattr(image, "is_animated", False):
        image.load()
        return
    bits = int(pixel["depth"] or (1 if pixel["bands"] == "1" else 8)) * len(pixel["bands"])
    num_bytes = num_pixel_bytes(*image.size, bits=bits, is_interlaced=bool(image.info.get("interlace")))
    begin, end = file.tell(), file.seek(0, os.SEEK_END)
    file.seek(begin)
    if num_bytes > MAX_DEFLATE_RATIO * end:
        raise ValueError(f"{end} bytes cannot hold width x height {image.size}")
    image.load()
    last_rows = np.asarray(image.crop((0, max(image.height - 2, 0), image.width, image.height)))
    if not last_rows.reshape(len(last_rows), -1).any(axis=1).all():
        file.seek(0)
        if count_pixel_bytes(file.read(), num_bytes) < num_bytes:
            raise ValueError("its pixels end early")


def _raw_mode(image: Image.Image) -> str:
    """Return Pillow's name of the pixel format in the file; empty after decoding, or without a file."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _wide_numbers(image: Image.Image, stored_as: str, bits: int) -> tuple[np.ndarray, int]:
    """Return the numbers (H, W) of a decoded image of more than 8 bits, and how many of 16 bits are used."""
    numbers = np.asarray(image)
    if image.mode == "I" and (image.format == "PPM" or stored_as in ("I;16", "I;16B")):  # 16 bits, held in 32
        numbers = numbers.astype(np.uint16)
    if image.format == "PPM" and stored_as != "I;16B":
        return numbers, FULL_BITS  # such files name their largest number, and Pillow has scaled by it
    return numbers, min(bits, _TWELVE_BITS) if stored_as == "I;12" else bits


def _read_deep_colours(image: Image.Image) -> np.ndarray | None:
    """Return colours (H, W, 3) uint16 of a file not yet decoded; None if only Pillow reads its format."""
    file: Any = image.fp  # type: ignore[attr-defined]
    file.seek(0)
    content = bytearray(file.read())
    if image.format == "TIFF" and not _forget_orientation(content):  # which OpenCV follows in part
        return None
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    height, width = _read_header(image)[0] if image.format == "TIFF" else (image.height, image.width)
    if pixels is None or pixels.dtype != np.uint16 or pixels.shape[:2] != (height, width) or pixels.ndim != 3:
        return None
    return np.ascontiguousarray(pixels[..., 2::-1]) if pixels.shape[2] >= 3 else None


def _forget_orientation(content: bytearray) -> bool:
    """Set the orientation in the first directory of a TIFF file to upright; return False for a BigTIFF."""
    order = "<" if content[:2] == b"II" else ">"
    magic, begin = struct.unpack_from(f"{order}HI", content, 2)
    if magic != _TIFF_MAGIC:
        return False
    (count,) = struct.unpack_from(f"{order}H", content, begin)
    for entry in range(begin + 2, begin + 2 + 12 * count, 12):
        if struct.unpack_from(f"{order}H", content, entry)[0] == _ORIENTATION_TAG:
            struct.pack_into(f"{order}H", content, entry + 8, 1)
    return True


def _tensor_to_array(image: torch.Tensor) -> np.ndarray:
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise InputError(f"image tensor: expected shape (3, H, W) or (1, H, W), found {tuple(image.shape)}")
    image = image.detach().cpu()
    return (image.float() if image.dtype == torch.bfloat16 else image).permute(1, 2, 0).numpy()


def _array_to_rgb(pixels: np.ndarray, channel_order: str, *, name: str, bits: int) -> np.ndarray:
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise InputError(f"{name}: expected shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), found {pixels.shape}")
    if pixels.size == 0:
        raise InputError(f"{name}: expected at least one pixel, found shape {pixels.shape}")
    pixels = _to_bytes(pixels, name=name, bits=bits)
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    pixels = pixels[:, :, :3]
    return np.ascontiguousarray(pixels if channel_order == "RGB" else pixels[:, :, ::-1])


def _to_bytes(numbers: np.ndarray, *, name: str, bits: int) -> np.ndarray:
    """Return the same as uint8: 16 bits are scaled, others must lie in 0..255."""
    if numbers.dtype == np.uint8:
        return numbers
    if numbers.dtype.kind not in "iuf":
        raise InputError(f"{name}: expected numbers in 0..255, found values of type {numbers.dtype}")
    low, high = numbers.min(), numbers.max()
    if numbers.dtype.kind == "u" and numbers.dtype.itemsize == 2:
        if int(high) >= 1 << bits:
            raise DatasetError(f"{name}: INPUT.IMAGE_BITS is {bits}, numbers up to {(1 << bits) - 1}; found {high}")
        return _byte_table(bits)[numbers]
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 255:
        raise DatasetError(f"{name}: expected values in 0..255, found {low:g}..{high:g} of type {numbers.dtype}")
    if numbers.dtype.kind == "f" and 0 < high <= 1:
        raise DatasetError(f"{name}: expected values in 0..255, found {low:g}..{high:g}; multiply them by 255")
    return np.rint(numbers).astype(np.uint8)


@functools.cache
def _byte_table(bits: int) -> np.ndarray:
    """Return uint8 of each number below 2**bits; (65536,)."""
    largest = (1 << check_image_bits(bits)) - 1
    table = np.zeros(1 << FULL_BITS, dtype=np.uint8)
    table[: largest + 1] = np.rint(np.arange(largest + 1) * (255.0 / largest))
    return table


def check_image_bits(bits: int) -> int:
    """Return INPUT.IMAGE_BITS.

    Raises:
        ConfigError: it is not in 8..16.
    """
    if bits not in range(8, FULL_BITS + 1):
        raise ConfigError(f"INPUT.IMAGE_BITS: expected 8..{FULL_BITS}, found {bits!r}")
    return bits
