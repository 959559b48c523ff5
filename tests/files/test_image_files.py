"""Reading images and label files, whole and damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former.errors import DatasetError
from mask2former.files.images import read_image, read_image_size, read_label_map, read_panoptic_ids
from mask2former.structures import id_to_rgb


def _noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_read_image_formats(tmp_path: Path) -> None:
    image = _noise(5, 7)
    Image.fromarray(image).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", "RGB"), image)
    assert np.array_equal(read_image(tmp_path / "a.png"), image[..., ::-1])
    grey = np.asarray(Image.fromarray(image).convert("L"))
    assert np.array_equal(read_image(tmp_path / "a.png", "L"), grey[..., None])
    with pytest.raises(ValueError, match="BGR, RGB, L"):
        read_image(tmp_path / "a.png", "YUV")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_read_image_of_any_mode_has_three_channels(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.fromarray(_noise(6, 4)).convert(mode).save(path)
    assert read_image(path).shape == (6, 4, 3)
    assert read_image_size(path) == (6, 4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_image_applies_exif_orientation(tmp_path: Path, orientation: int) -> None:
    image = _noise(6, 9)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    mirrored = image if orientation in (1, 3, 6, 8) else image[:, ::-1]
    turns = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}[orientation]
    expected = np.rot90(mirrored, turns)
    assert np.array_equal(read_image(tmp_path / "a.png", "RGB"), expected)
    assert read_image_size(tmp_path / "a.png") == expected.shape[:2]


def test_read_label_map_types(tmp_path: Path) -> None:
    narrow = np.array([[0, 255], [3, 4]], np.uint8)
    Image.fromarray(narrow).save(tmp_path / "narrow.png")
    assert read_label_map(tmp_path / "narrow.png").dtype == np.uint8
    assert np.array_equal(read_label_map(tmp_path / "narrow.png"), narrow)
    wide = np.array([[0, 65535], [300, 4]], np.uint16)
    Image.fromarray(wide).save(tmp_path / "wide.tif")
    assert read_label_map(tmp_path / "wide.tif").dtype == np.int32
    assert np.array_equal(read_label_map(tmp_path / "wide.tif"), wide)
    palette = Image.fromarray(narrow, mode="L").convert("P")
    palette.putpalette(list(range(255, -1, -1)) * 3)
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(read_label_map(tmp_path / "palette.png"), narrow)


def test_read_panoptic_ids(tmp_path: Path) -> None:
    ids = np.array([[0, 16_777_215], [256, 70_000]], np.int32)
    Image.fromarray(id_to_rgb(ids)).save(tmp_path / "ids.png")
    assert np.array_equal(read_panoptic_ids(tmp_path / "ids.png"), ids)


@pytest.mark.parametrize("read", [read_image, read_label_map, read_panoptic_ids, read_image_size])
@pytest.mark.parametrize("content", [b"", b"not an image at all", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_damaged_file_is_named(tmp_path: Path, read: Callable[[Path], object], content: bytes) -> None:
    path = tmp_path / "damaged.png"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=f"cannot be read: {path}"):
        read(path)
    with pytest.raises(DatasetError, match=f"not found: {tmp_path / 'absent.png'}"):
        read(tmp_path / "absent.png")
    with pytest.raises(DatasetError, match=str(tmp_path)):
        read(tmp_path)  # a folder


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_truncated_image_is_named(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"cut.{extension}"
    Image.fromarray(_noise(40, 40)).save(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DatasetError, match=f"cannot be read: {path}"):
        read_image(path)


def test_label_and_panoptic_files_of_the_other_kind_are_refused(tmp_path: Path) -> None:
    Image.fromarray(_noise(4, 4)).save(tmp_path / "rgb.png")
    Image.new("L", (4, 4)).save(tmp_path / "grey.png")
    with pytest.raises(DatasetError, match=r"one channel of class ids, found 3 channels of uint8: .*rgb.png"):
        read_label_map(tmp_path / "rgb.png")
    with pytest.raises(DatasetError, match=r"must code segment ids as RGB, found 1 channel of uint8: .*grey.png"):
        read_panoptic_ids(tmp_path / "grey.png")
