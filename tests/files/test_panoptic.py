"""Ids of panoptic PNG files: what the quick way reads is what Pillow reads, and it leaves all else to that."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from mask2former.errors import DatasetError
from mask2former.files import maps as panoptic
from mask2former.files.maps import decode_panoptic_png, read_panoptic_ids
from mask2former.ops import native
from mask2former.structures import id_to_rgb, rgb_to_id

needs_library = pytest.mark.skipif(native.cpu_library() is None, reason="the compiled library is not built")


@pytest.fixture(params=["libdeflate", "zlib"], autouse=True)
def _inflater(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "libdeflate":
        pytest.importorskip("deflate")
    else:
        monkeypatch.setattr(panoptic, "deflate", None)


def segments(size: tuple[int, int]) -> np.ndarray:
    rng = np.random.default_rng(1)
    coarse = rng.integers(1 << 24, size=(-(-size[0] // 5), -(-size[1] // 7)))
    return coarse.repeat(5, 0).repeat(7, 1)[: size[0], : size[1]].astype(np.int32)


def png(pixels: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", **options)
    return stream.getvalue()


@needs_library
@pytest.mark.parametrize("size", [(1, 1), (48, 64), (37, 101), (1, 50), (300, 1)])
@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"compress_level": 0}])
def test_ids_are_those_that_pillow_reads(size: tuple[int, int], options: dict[str, object]) -> None:
    ids = segments(size)
    content = png(id_to_rgb(ids), **options)
    found = decode_panoptic_png(content)
    assert found is not None
    np.testing.assert_array_equal(found, ids)
    np.testing.assert_array_equal(found, rgb_to_id(np.asarray(Image.open(io.BytesIO(content)))))


@needs_library
def test_files_in_many_chunks_are_read() -> None:
    noise = np.random.default_rng(0).integers(1 << 24, size=(200, 300)).astype(np.int32)
    content = png(id_to_rgb(noise))
    assert content.count(b"IDAT") > 1
    found = decode_panoptic_png(content)
    assert found is not None
    np.testing.assert_array_equal(found, noise)


@needs_library
@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_other_kinds_of_files_are_left(mode: str) -> None:
    picture = Image.fromarray(id_to_rgb(segments((20, 30))))
    picture = Image.new(mode, (30, 20)) if mode == "I;16" else picture.convert(mode)
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    assert decode_panoptic_png(stream.getvalue()) is None
    assert decode_panoptic_png(b"") is None
    assert decode_panoptic_png(b"\xff\xd8\xff") is None


@needs_library
@pytest.mark.parametrize(
    "form", [(8, 2, 0, 0, 1), (16, 2, 0, 0, 0), (8, 2, 0, 0, 0)], ids=["interlaced", "deep", "size"]
)
def test_headers_that_say_otherwise_are_left(form: tuple[int, ...]) -> None:
    content = bytearray(png(id_to_rgb(segments((20, 30)))))
    content[16:29] = struct.pack(">II5B", 30, 21 if form == (8, 2, 0, 0, 0) else 20, *form)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    assert decode_panoptic_png(bytes(content)) is None


@needs_library
def test_broken_files_are_left() -> None:
    content = png(id_to_rgb(segments((40, 60))))
    assert all(decode_panoptic_png(content[:length]) is None for length in range(0, len(content), 3))
    for place in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[place] ^= 0x55
        assert decode_panoptic_png(bytes(damaged)) is None, place


@pytest.mark.parametrize("kind", ["plain", "interlaced", "gamma", "transparent colour", "alpha", "bmp"])
def test_read_panoptic_ids_of_any_kind_of_file(kind: str, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 1 << 24, size=(7, 9), dtype=np.int32)
    image = Image.fromarray(id_to_rgb(ids))
    path = tmp_path / ("ids.bmp" if kind == "bmp" else "ids.png")
    chunks = PngImagePlugin.PngInfo()
    if kind == "gamma":
        chunks.add(b"gAMA", (100000).to_bytes(4, "big"))
    if kind == "alpha":
        image.putalpha(100)
    image.save(path, **({"pnginfo": chunks} if kind == "gamma" else {}))
    if kind == "transparent colour":
        image.save(path, transparency=(1, 2, 3))
    found = read_panoptic_ids(path)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, ids)


@pytest.mark.parametrize("kept", [0, 20, 60, -400, -12, -1])
def test_read_panoptic_ids_refuses_truncated_files(kept: int, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 1 << 24, size=(50, 60), dtype=np.int32)
    path = tmp_path / "ids.png"
    Image.fromarray(id_to_rgb(ids)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[:kept])
    if kept in (-1, -12):  # all pixels are there: what ends the file is missing
        np.testing.assert_array_equal(read_panoptic_ids(path), ids)
        return
    with pytest.raises(DatasetError, match=r"ids\.png"):
        read_panoptic_ids(path)


def test_read_panoptic_ids_refuses_damaged_pixels(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 1 << 24, size=(50, 60), dtype=np.int32)
    path = tmp_path / "ids.png"
    Image.fromarray(id_to_rgb(ids)).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(DatasetError, match=r"ids\.png: cannot be read as an image"):
        read_panoptic_ids(path)
