"""The parts of a PNG file, and how many bytes its pixels take before they are compressed."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_DEFLATE_RATIO = 1032  # of what comes out to what went in, by the format; a header that asks for more lies
_LENGTH = struct.Struct(">I")
# First column, first row, and the steps between columns and between rows, of each pass of an interlaced image.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_WHOLE = ((0, 0, 1, 1),)
_STEP = 1 << 20  # bytes inflated at a time to count them


def read_parts(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind and the data of each part before IEND.

    Raises:
        ValueError: the signature, a check sum or the end is missing or wrong.
    """
    if not content.startswith(SIGNATURE):
        raise ValueError("no PNG file")
    begin = len(SIGNATURE)
    while begin + 12 <= len(content):
        (length,) = _LENGTH.unpack_from(content, begin)
        kind, data = content[begin + 4 : begin + 8], content[begin + 8 : begin + 8 + length]
        begin += 12 + length
        if begin > len(content) or _LENGTH.unpack_from(content, begin - 4)[0] != zlib.crc32(data, zlib.crc32(kind)):
            raise ValueError("a part of the PNG file is cut off or damaged")
        if kind == b"IEND":
            return
        yield kind, data
    raise ValueError("the PNG file ends early")


def num_pixel_bytes(width: int, height: int, *, bits: int, is_interlaced: bool = False) -> int:
    """Return the bytes of all rows, each with its filter. bits: of a pixel."""
    total = 0
    for left, top, step_x, step_y in _PASSES if is_interlaced else _WHOLE:
        columns, rows = -(-(width - left) // step_x), -(-(height - top) // step_y)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total


def count_pixel_bytes(content: bytes, most: int) -> int:
    """Return how many bytes of rows a PNG file holds, not counting further than ``most``."""
    inflater, total = zlib.decompressobj(), 0
    for kind, data in read_parts(content):
        while kind == b"IDAT" and data and total < most and not inflater.eof:
            total += len(inflater.decompress(data, _STEP))
            data = inflater.unconsumed_tail
    return total
