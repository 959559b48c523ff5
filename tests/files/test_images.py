"""One reader of images, whole and damaged, for training, evaluation and prediction; label maps beside it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.errors import DatasetError, InputError
from mask2former.files.images import read_image, read_image_size, to_rgb_array
from mask2former.files.label_maps import read_label_map
from mask2former.files.panoptic import read_panoptic_ids
from mask2former.structures import id_to_rgb

HEIGHT, WIDTH = 5, 7


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
    with pytest.raises(DatasetError, match=f"{path}: cannot be read as an image"):
        read(path)
    with pytest.raises(DatasetError, match=f"{tmp_path / 'absent.png'}: file not found"):
        read(tmp_path / "absent.png")
    with pytest.raises(DatasetError, match=f"{tmp_path}: expected a file, found a directory"):
        read(tmp_path)


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_truncated_image_is_named(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"cut.{extension}"
    Image.fromarray(_noise(40, 40)).save(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DatasetError, match=f"{path}: cannot be read as an image"):
        read_image(path)


def test_label_and_panoptic_files_of_the_other_kind_are_refused(tmp_path: Path) -> None:
    Image.fromarray(_noise(4, 4)).save(tmp_path / "rgb.png")
    Image.new("L", (4, 4)).save(tmp_path / "grey.png")
    with pytest.raises(
        DatasetError, match=r"rgb.png: a label map has one channel of class ids, found 3 channels of uint8"
    ):
        read_label_map(tmp_path / "rgb.png")
    with pytest.raises(DatasetError, match=r"grey.png: segment ids are coded in RGB, found 1 channel of uint8"):
        read_panoptic_ids(tmp_path / "grey.png")


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def encode(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, **options)
    return buffer.getvalue()


def test_to_rgb_array_all_kinds_agree(rgb: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(encode(Image.fromarray(rgb)))
    kinds = [
        path,
        str(path),
        path.read_bytes(),
        memoryview(path.read_bytes()),
        Image.fromarray(rgb),
        rgb,
        rgb.astype(np.float32),
        rgb.astype(np.int64),
        rgb.astype(np.uint16) * 257,
        torch.from_numpy(rgb).permute(2, 0, 1),
        torch.from_numpy(rgb).permute(2, 0, 1).bfloat16(),
    ]
    for kind in kinds:
        result = to_rgb_array(kind)
        assert result.dtype == np.uint8
        assert np.array_equal(result, rgb)


def test_to_rgb_array_bgr_is_reversed(rgb: np.ndarray) -> None:
    bgr = np.ascontiguousarray(rgb[:, :, ::-1])
    assert np.array_equal(to_rgb_array(bgr, channel_order="BGR"), rgb)
    assert np.array_equal(to_rgb_array(torch.from_numpy(bgr).permute(2, 0, 1), channel_order="BGR"), rgb)


def test_to_rgb_array_grey_is_repeated(rgb: np.ndarray) -> None:
    grey = rgb[:, :, 0]
    for image in (grey, grey[:, :, None], Image.fromarray(grey), torch.from_numpy(grey)[None]):
        assert np.array_equal(to_rgb_array(image), np.repeat(grey[:, :, None], 3, axis=2))


@pytest.mark.parametrize("transparent", [0, 255])
def test_to_rgb_array_transparency_is_dropped(transparent: int, rgb: np.ndarray) -> None:
    rgba = np.concatenate([rgb, np.full((HEIGHT, WIDTH, 1), transparent, dtype=np.uint8)], axis=2)
    assert np.array_equal(to_rgb_array(rgba), rgb)
    assert np.array_equal(to_rgb_array(encode(Image.fromarray(rgba))), rgb)


def test_to_rgb_array_palette_with_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 210, 220])
    image.putpixel((1, 0), 1)
    assert to_rgb_array(encode(image, transparency=0))[0].tolist() == [[10, 20, 30], [200, 210, 220]]


def test_to_rgb_array_sixteen_bits_are_scaled_not_clipped() -> None:
    grey = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    result = to_rgb_array(encode(Image.fromarray(grey)))
    assert result[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (HEIGHT - 1, WIDTH - 1)), (6, (0, HEIGHT - 1))])
def test_to_rgb_array_follows_exif(orientation: int, corner: tuple[int, int]) -> None:
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = to_rgb_array(encode(Image.fromarray(pixels), exif=exif))
    assert result.shape[:2] == ((WIDTH, HEIGHT) if orientation == 6 else (HEIGHT, WIDTH))
    assert (result[corner] == 255).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, 3, 4, 3), np.uint8), r"found \(2, 3, 4, 3\)"),
        (np.zeros((4, 4, 2), np.uint8), r"found \(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
        (np.full((2, 2, 3), 300), "300"),
        (np.full((2, 2, 3), -1.0), "-1"),
        (np.full((2, 2, 3), np.nan), "nan"),
        (np.full((2, 2, 3), 0.5), "multiply them by 255"),
        (np.full((2, 2, 3), "a"), "numbers"),
        (torch.zeros(5, 7, 3, dtype=torch.uint8), r"\(5, 7, 3\)"),
        (torch.zeros(5, 7), r"\(5, 7\)"),
        (b"not an image", "12 bytes"),
        (17, "found int"),
    ],
)
def test_to_rgb_array_wrong_input_is_named(image: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_rgb_array(image)  # type: ignore[arg-type]


def test_to_rgb_array_wrong_order_is_named(rgb: np.ndarray) -> None:
    with pytest.raises(InputError, match="'RBG'"):
        to_rgb_array(rgb, channel_order="RBG")


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "BMP", "TIFF"])
def test_to_rgb_array_truncated_file_is_named(image_format: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "half.img"
    path.write_bytes(encode(Image.fromarray(noise), image_format)[:2000])
    with pytest.raises(InputError, match=r"half\.img"):
        to_rgb_array(path)


def test_to_rgb_array_missing_file_and_directory_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jpg: file not found"):
        to_rgb_array(tmp_path / "none.jpg")
    with pytest.raises(InputError, match="found a directory"):
        to_rgb_array(tmp_path)
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(InputError, match=r"empty\.jpg: cannot be read as an image: not an image"):
        to_rgb_array(tmp_path / "empty.jpg")
