from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.errors import InputError
from mask2former.files.image_input import to_rgb_array

HEIGHT, WIDTH = 5, 7


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
    with pytest.raises(InputError, match=r"none\.jpg: cannot be read: No such file"):
        to_rgb_array(tmp_path / "none.jpg")
    with pytest.raises(InputError, match="found a directory"):
        to_rgb_array(tmp_path)
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(InputError, match=r"empty\.jpg: not an image"):
        to_rgb_array(tmp_path / "empty.jpg")
