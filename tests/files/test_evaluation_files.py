"""Reading of panoptic PNG files of every kind, and reading ahead."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from mask2former.errors import DatasetError
from mask2former.evaluation.read_ahead import ReadAhead
from mask2former.files.evaluation_files import read_panoptic_ids
from mask2former.structures import id_to_rgb


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


@pytest.mark.parametrize("order", [range(12), range(5, 12), (3, 1, 2, 9, 9, 0), (11,), ()])
def test_read_ahead_gives_each_item_in_any_order(order: list[int]) -> None:
    items = ReadAhead(lambda position: 10 * position, 12, num_ahead=3)
    assert [items[position] for position in order] == [10 * position for position in order]


def test_read_ahead_reads_what_comes_next_once_and_before_it_is_asked_for() -> None:
    reads: list[int] = []
    is_read = threading.Event()

    def read(position: int) -> int:
        reads.append(position)
        if position == 2:
            is_read.set()
        return position

    items = ReadAhead(read, 4, num_ahead=2)
    assert items[0] == 0
    assert is_read.wait(timeout=60)
    assert [items[position] for position in (1, 2, 3)] == [1, 2, 3]
    assert sorted(reads) == [0, 1, 2, 3]


def test_read_ahead_raises_where_the_item_is_asked_for() -> None:
    def read(position: int) -> int:
        if position == 1:
            raise DatasetError("second")
        return position

    items = ReadAhead(read, 3)
    assert items[0] == 0
    with pytest.raises(DatasetError, match="second"):
        items[1]
    assert items[2] == 2
