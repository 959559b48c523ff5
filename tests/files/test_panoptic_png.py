"""Ids of panoptic PNG files: what the quick way reads is what Pillow reads, and it leaves all else to that."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mask2former.files import panoptic_png
from mask2former.files.panoptic_png import decode_panoptic_png
from mask2former.ops import native
from mask2former.structures import id_to_rgb, rgb_to_id

pytestmark = pytest.mark.skipif(native.cpu_library() is None, reason="the compiled library is not built")


@pytest.fixture(params=["libdeflate", "zlib"], autouse=True)
def _inflater(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "libdeflate":
        pytest.importorskip("deflate")
    else:
        monkeypatch.setattr(panoptic_png, "deflate", None)


def segments(size: tuple[int, int]) -> np.ndarray:
    rng = np.random.default_rng(1)
    coarse = rng.integers(1 << 24, size=(-(-size[0] // 5), -(-size[1] // 7)))
    return coarse.repeat(5, 0).repeat(7, 1)[: size[0], : size[1]].astype(np.int32)


def png(pixels: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", **options)
    return stream.getvalue()


@pytest.mark.parametrize("size", [(1, 1), (48, 64), (37, 101), (1, 50), (300, 1)])
@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"compress_level": 0}])
def test_ids_are_those_that_pillow_reads(size: tuple[int, int], options: dict[str, object]) -> None:
    ids = segments(size)
    content = png(id_to_rgb(ids), **options)
    found = decode_panoptic_png(content)
    assert found is not None
    np.testing.assert_array_equal(found, ids)
    np.testing.assert_array_equal(found, rgb_to_id(np.asarray(Image.open(io.BytesIO(content)))))


def test_files_in_many_chunks_are_read() -> None:
    noise = np.random.default_rng(0).integers(1 << 24, size=(200, 300)).astype(np.int32)
    content = png(id_to_rgb(noise))
    assert content.count(b"IDAT") > 1
    found = decode_panoptic_png(content)
    assert found is not None
    np.testing.assert_array_equal(found, noise)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_other_kinds_of_files_are_left(mode: str) -> None:
    picture = Image.fromarray(id_to_rgb(segments((20, 30))))
    picture = Image.new(mode, (30, 20)) if mode == "I;16" else picture.convert(mode)
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    assert decode_panoptic_png(stream.getvalue()) is None
    assert decode_panoptic_png(b"") is None
    assert decode_panoptic_png(b"\xff\xd8\xff") is None


@pytest.mark.parametrize(
    "form", [(8, 2, 0, 0, 1), (16, 2, 0, 0, 0), (8, 2, 0, 0, 0)], ids=["interlaced", "deep", "size"]
)
def test_headers_that_say_otherwise_are_left(form: tuple[int, ...]) -> None:
    content = bytearray(png(id_to_rgb(segments((20, 30)))))
    content[16:29] = struct.pack(">II5B", 30, 21 if form == (8, 2, 0, 0, 0) else 20, *form)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    assert decode_panoptic_png(bytes(content)) is None


def test_broken_files_are_left() -> None:
    content = png(id_to_rgb(segments((40, 60))))
    assert all(decode_panoptic_png(content[:length]) is None for length in range(0, len(content), 3))
    for place in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[place] ^= 0x55
        assert decode_panoptic_png(bytes(damaged)) is None, place
