"""Label maps, whose pixels are class ids, and panoptic maps, whose colours are segment ids.

Panoptic maps are read several times faster than through an image library: they compress a hundredfold, so nearly all
of their decoding is inflating long repetitions, which libdeflate does ten times faster than zlib, and undoing PNG's
filters, which here writes ids at once.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from mask2former.errors import DatasetError, InputError
from mask2former.files.images import opened_image, stored_pixels, stores_sixteen_bits
from mask2former.files.inputs import PathLike, read_file
from mask2former.files.png import MAX_DEFLATE_RATIO, read_parts
from mask2former.ops.panoptic_maps import unfilter_ids
from mask2former.structures import rgb_to_id

Colour = tuple[int, int, int]


def read_label_map(path: PathLike, *, error: type[InputError] = DatasetError) -> np.ndarray:
    """Class ids (H, W) uint8, or int32 where the file has more than eight bits; indices, where it has a palette.

    Python numbers above 255 do not mix with the narrow type: widen the array before they meet.

    Raises:
        DatasetError (or ``error``): the file is missing, cut off, damaged, or has more than one channel.
    """
    with opened_image(path, error=error) as image:
        pixels = stored_pixels(image)
    if pixels.ndim != 2 or pixels.dtype.kind not in "ui":
        raise error(f"{path}: a label map has one channel of class ids, found {describe_pixels(pixels)}")
    return pixels.astype(np.uint8 if pixels.dtype.itemsize == 1 else np.int32, copy=False)


def read_coloured_map(path: PathLike, id_of: Mapping[Colour, int]) -> tuple[np.ndarray, bool]:
    """Class ids (H, W) of a label map, or of a picture whose colours stand for them; and whether it is a label map.

    Raises:
        DatasetError: the file is missing or damaged, or has a colour that ``id_of`` lacks.
    """
    with opened_image(path, error=DatasetError) as image:
        pixels = stored_pixels(image)
    if pixels.ndim == 2:
        return read_label_map(path), True
    if pixels.dtype != np.uint8 or pixels.shape[-1] < 3:
        raise DatasetError(f"{path}: expected class ids or colours, found {describe_pixels(pixels)}")
    channels = pixels[..., :3].astype(np.int32)
    codes, places = np.unique(channels[..., 0] << 16 | channels[..., 1] << 8 | channels[..., 2], return_inverse=True)
    colours = [(code >> 16, code >> 8 & 255, code & 255) for code in codes.tolist()]
    if not id_of:
        raise DatasetError(f"{path}: a picture of {len(colours)} colours, and no table says which classes these are")
    unknown = [colour for colour in colours if colour not in id_of]
    if unknown:
        raise DatasetError(f"{path}: {len(unknown)} colours stand for no class, for instance {unknown[:3]}")
    ids = np.array([id_of[colour] for colour in colours], dtype=np.int32)
    return ids[places].reshape(pixels.shape[:2]), False


def describe_pixels(pixels: np.ndarray) -> str:
    """Channels and type in words, for errors."""
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
    return f"{channels} channel{'s' if channels > 1 else ''} of {pixels.dtype}"


deflate: Any
try:
    import deflate
except ImportError:  # on a platform that it has no wheel for
    deflate = None
_INFLATE_ERRORS = (zlib.error, ValueError, MemoryError, *(() if deflate is None else (deflate.DeflateError,)))

_HEADER = struct.Struct(">II5B")  # width, height, depth, colours, compression, filters, interlacing
_PLAIN_RGB = (8, 2, 0, 0, 0)


def read_panoptic_ids(path: PathLike, *, error: type[InputError] = DatasetError) -> np.ndarray:
    """Return segment ids (H, W) int32 of a panoptic PNG: R + 256 G + 65536 B.

    Raises:
        DatasetError (or ``error``): the file is missing, cut off, damaged, or not coloured with 8 bits a channel.
    """
    content = read_file(path, error=error)
    ids = decode_panoptic_png(content)
    if ids is not None:
        return ids
    with opened_image(path, error=error) as image:
        if stores_sixteen_bits(image):
            raise error(f"{path}: segment ids are coded in RGB of 8 bits a channel, found 16 bits")
        pixels = stored_pixels(image)
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or pixels.dtype != np.uint8:
        raise error(f"{path}: segment ids are coded in RGB, found {describe_pixels(pixels)}")
    return rgb_to_id(np.ascontiguousarray(pixels[..., :3]))


def decode_panoptic_png(content: bytes) -> np.ndarray | None:
    """Return ids (H, W) int32, R + 256 G + 65536 B, of a PNG of three channels of 8 bits.

    None for any other file, a broken one, or without the compiled library: image libraries then report what is wrong.
    """
    parts: list[bytes] = []
    size: tuple[int, int] | None = None
    try:
        for kind, data in read_parts(content):
            if kind == b"IHDR":
                size = _size_of(data)
            elif kind == b"IDAT":
                parts.append(data)
            elif kind in (b"tRNS", b"eXIf"):
                return None  # transparency, a fourth channel; or an orientation
    except ValueError:
        return None
    if size is None:
        return None
    compressed, num_bytes = parts[0] if len(parts) == 1 else b"".join(parts), size[0] * (1 + 3 * size[1])
    if num_bytes > MAX_DEFLATE_RATIO * len(compressed):
        return None
    rows = _inflate(compressed, num_bytes)
    return None if rows is None else unfilter_ids(rows, size)


def _size_of(header: bytes) -> tuple[int, int] | None:
    if len(header) != _HEADER.size:
        return None
    width, height, *form = _HEADER.unpack(header)
    # A file that says more is left to the image library, which refuses it.
    most = 2 * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS is not None else height * width
    return (height, width) if tuple(form) == _PLAIN_RGB and 0 < height * width <= most else None


def _inflate(compressed: bytes, num_bytes: int) -> bytes | bytearray | None:
    try:
        if deflate is not None:
            return deflate.zlib_decompress(compressed, num_bytes)
        inflater = zlib.decompressobj()
        data = inflater.decompress(compressed, num_bytes)
        return data if inflater.eof else None
    except _INFLATE_ERRORS:
        return None
