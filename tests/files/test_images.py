"""One reader of images, whole and damaged, for training, evaluation and prediction; label maps beside it."""

from __future__ import annotations

import io
import os
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mask2former.errors import ConfigError, DatasetError, InputError
from mask2former.files import png
from mask2former.files.images import exif_note, read_image, read_image_size, to_rgb_array
from mask2former.files.maps import read_label_map, read_panoptic_ids
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


def turned_by(orientation: int, image: np.ndarray) -> np.ndarray:
    """What EXIF says of an image with that orientation."""
    mirrored = image if orientation in (1, 3, 6, 8) else image[:, ::-1]
    return np.rot90(mirrored, {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}[orientation])


FILE_FORMS = {
    "png": {},
    "tif": {},
    "tif, lzw": {"compression": "tiff_lzw"},
    "webp": {"lossless": True},
    "jpg": {"quality": 100, "subsampling": 0},
}


@pytest.mark.parametrize("form", FILE_FORMS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_image_applies_exif_orientation(tmp_path: Path, orientation: int, form: str) -> None:
    image = np.kron(_noise(2, 3), np.ones((8, 8, 1), np.uint8))  # blocks, which JPEG keeps
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{form.split(',')[0]}"
    Image.fromarray(image).save(path, exif=exif, **FILE_FORMS[form])
    expected = turned_by(orientation, image)
    for found in (read_image(path, "RGB"), to_rgb_array(path), to_rgb_array(path.read_bytes())):
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).max() <= (4 if form == "jpg" else 0)
    assert read_image_size(path) == expected.shape[:2]
    assert ("EXIF orientation" in exif_note(path)) == (orientation >= 5)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("orientation", [1, 4, 6, 7])
def test_deep_colours_are_turned_as_any(name: str, orientation: int, tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (6, 9, 3)).astype(np.uint16)
    path = tmp_path / name
    cv2.imwrite(str(path), deep[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 1] if name == "a.tif" else [])
    path.write_bytes(with_orientation(path.read_bytes(), orientation))
    expected = turned_by(orientation, np.rint(deep / 257.0).astype(np.uint8))
    assert np.array_equal(read_image(path, "RGB"), expected)
    assert read_image_size(path) == expected.shape[:2]


def with_orientation(content: bytes, orientation: int) -> bytes:
    """A PNG or little-endian TIFF file without an orientation, with one."""
    if content.startswith(b"\x89PNG"):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = exif.tobytes()[len(b"Exif\0\0") :]
        chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
        return content[:33] + chunk + content[33:]
    (begin,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, begin)
    entries = [content[begin + 2 + 12 * k : begin + 14 + 12 * k] for k in range(count)]
    entries = [entry for entry in entries if entry[:2] != struct.pack("<H", 274)]
    entries = sorted(
        [*entries, struct.pack("<HHIHH", 274, 3, 1, orientation, 0)], key=lambda e: struct.unpack("<H", e[:2])
    )
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return content[:4] + struct.pack("<I", len(content)) + content[8:] + directory


DEEP = np.array([[0, 257, 4095, 32896], [65535, 1, 128, 129]], np.uint16)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_are_scaled_not_clipped(name: str, channels: int, tmp_path: Path) -> None:
    if name == "a.pgm" and channels != 1:
        pytest.skip("grey alone")
    path = tmp_path / name
    cv2.imwrite(str(path), DEEP if channels == 1 else np.stack([DEEP, DEEP // 2, DEEP // 4, DEEP][:channels], -1))
    planes = [DEEP] * 3 if channels == 1 else [DEEP // 4, DEEP // 2, DEEP]
    expected = np.rint(np.stack(planes, -1) / 257.0).astype(np.uint8)
    assert np.array_equal(read_image(path, "RGB"), expected)
    assert np.array_equal(read_image(path, "BGR"), expected[..., ::-1])
    assert np.array_equal(to_rgb_array(path), expected)
    assert np.array_equal(to_rgb_array(Image.open(path)), expected)
    assert read_image_size(path) == (2, 4)
    if channels == 1:
        assert np.array_equal(read_image(path, "L")[..., 0], expected[..., 0])


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_bits_say_what_white_is_and_are_kept_to(name: str, channels: int, tmp_path: Path) -> None:
    path, white = tmp_path / name, np.array([[0, 2048, 4095]], np.uint16)
    cv2.imwrite(str(path), white if channels == 1 else np.stack([white] * 3, -1))
    assert read_image(path, bits=12)[0, :, 0].tolist() == [0, 128, 255]
    assert to_rgb_array(path, bits=12)[0, :, 2].tolist() == [0, 128, 255]
    assert to_rgb_array(white, bits=12)[0, :, 0].tolist() == [0, 128, 255]
    with pytest.raises(DatasetError, match=rf"{name}: INPUT.IMAGE_BITS is 10, numbers up to 1023; found 4095"):
        read_image(path, bits=10)
    with pytest.raises(ConfigError, match=r"INPUT.IMAGE_BITS: expected 8..16, found 17"):
        read_image(path, bits=17)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_wide_files_hold_bytes_or_are_refused(dtype: type, tmp_path: Path) -> None:
    path, values = tmp_path / "a.tif", np.array([[0, 7, 255]], dtype)
    Image.fromarray(values).save(path)
    assert read_image(path, "RGB")[0, :, 0].tolist() == [0, 7, 255]
    for low, high in ((0, 4000), (-5, 200)):
        Image.fromarray(np.array([[low, high]], dtype)).save(path)
        for read in (read_image, to_rgb_array):
            with pytest.raises(InputError, match=rf"a.tif: expected values in 0..255, found {low}..{high} of type"):
                read(path)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_size_is_that_of_the_image_and_all_readers_agree(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    suffix, modes = data.draw(st.sampled_from(sorted(MODES.items())))
    image = Image.fromarray(_noise(height, width)).convert(data.draw(st.sampled_from(modes)))
    options: dict[str, object] = {}
    if suffix in ("JPEG", "PNG", "TIFF", "WEBP"):
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = data.draw(st.integers(0, 9))
    if suffix == "PNG" and image.mode == "P" and data.draw(st.booleans()):
        options["transparency"] = data.draw(st.sampled_from([0, b"\x00\x80\xff"]))
    if suffix == "ICO":
        options["sizes"] = [image.size]  # Pillow before 13 writes a file without an image otherwise
    buffer = io.BytesIO()
    image.save(buffer, suffix, **options)
    with tempfile.NamedTemporaryFile(suffix=f".{suffix.lower()}") as file:
        file.write(buffer.getvalue())
        file.flush()
        rgb = read_image(file.name, "RGB")
        assert read_image_size(file.name) == rgb.shape[:2]
        assert np.array_equal(read_image(file.name, "BGR"), rgb[..., ::-1])
        assert np.array_equal(to_rgb_array(file.name), rgb)
    assert np.array_equal(to_rgb_array(buffer.getvalue()), rgb)
    assert np.array_equal(to_rgb_array(Image.open(buffer)), rgb)


MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("L", "P", "RGB"),
    "PPM": ("1", "L", "RGB"),
    "ICO": ("RGBA",),
    "TGA": ("L", "RGB", "RGBA"),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated File Read")
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_an_image_or_one_error(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(SAMPLES)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(1, len(content)))]
    message = ""
    try:
        found = to_rgb_array(bytes(content))
    except InputError as error:
        message = str(error)
    assert message.startswith("encoded image of") if message else found.dtype == np.uint8


def _samples() -> list[bytes]:
    found = []
    for image_format, modes in MODES.items():
        for mode in modes:
            buffer = io.BytesIO()
            Image.fromarray(_noise(5, 4)).convert(mode).save(buffer, image_format)
            found.append(buffer.getvalue())
    return found + [cv2.imencode(suffix, np.stack([DEEP] * 3, -1))[1].tobytes() for suffix in (".png", ".tif")]


SAMPLES = _samples()


@pytest.mark.parametrize(
    "reader", ["read_image", "read_image_size", "to_rgb_array", "read_label_map", "read_panoptic_ids"]
)
def test_what_is_no_file_is_named_without_waiting(reader: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "folder.png").mkdir()
    cases = {
        tmp_path / "pipe.png": "expected a file, found a named pipe",
        tmp_path / "folder.png": "expected a file, found a directory",
        tmp_path / "link.png": f"a link to {tmp_path / 'gone.png'}, which is not there",
        tmp_path / "file.png/a.png": "cannot be read: Not a directory",
        Path("/dev/zero"): "expected a file, found a device",
        tmp_path / ("a" * 300): "cannot be read: File name too long",
    }
    (tmp_path / "file.png").touch()
    for path, reason in cases.items():
        with pytest.raises(DatasetError, match=f"^{path}: {reason}"):
            globals()[reader](path)
    with pytest.raises(DatasetError, match="cannot be the name of a file"):
        globals()[reader]("nul\0.png")


def test_damaged_exif_data_leave_the_image(tmp_path: Path) -> None:
    pixels = _noise(4, 6)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=b"Exif\0\0nonsense that is no directory")
    assert np.array_equal(read_image(tmp_path / "a.png", "RGB"), pixels)
    assert read_image_size(tmp_path / "a.png") == (4, 6)


def test_first_of_several_frames_is_read_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames = [Image.fromarray(_noise(4, 6)), Image.new("RGB", (6, 4))]
    for name in ("a.png", "a.tif", "a.webp"):
        frames[0].save(
            tmp_path / name, save_all=True, append_images=frames[1:], **({"lossless": True} if "webp" in name else {})
        )
        assert np.array_equal(read_image(tmp_path / name, "RGB"), _noise(4, 6))
        assert caplog.messages.count(f"{tmp_path / name}: holds several frames or pages, the first is used") == 1


def test_page_descriptions_are_not_run(tmp_path: Path) -> None:
    Image.fromarray(_noise(4, 6)).save(tmp_path / "a.eps")
    with pytest.raises(DatasetError, match=r"a\.eps: cannot be read as an image: EPS describes a page"):
        read_image(tmp_path / "a.eps")


def test_decompression_bombs_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    header = struct.pack(">II5B", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1 << 20))), (b"IEND", b"")]
    content = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    for read in (read_image, read_image_size, read_label_map, read_panoptic_ids):
        with pytest.raises(DatasetError, match=r"a\.png: cannot be read as an image: too large"):
            read(tmp_path / "a.png")


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


def _png_part(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _write_png(path: Path, pixels: np.ndarray, *, missing: int = 0, is_interlaced: bool = False) -> Path:
    """Grey (H, W) or RGB (H, W, 3) of 8 bits, without the last ``missing`` bytes of its rows; whole as a file."""
    passes = png._PASSES if is_interlaced else png._WHOLE
    parts = [pixels[top::down, left::right] for left, top, right, down in passes]
    rows = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)
    assert len(rows) == png.num_pixel_bytes(
        *pixels.shape[1::-1], bits=8 * (1 if pixels.ndim == 2 else 3), is_interlaced=is_interlaced
    )
    header = struct.pack(
        ">II5B", pixels.shape[1], pixels.shape[0], 8, 0 if pixels.ndim == 2 else 2, 0, 0, is_interlaced
    )
    content = _png_part(b"IDAT", zlib.compress(rows[: len(rows) - missing]))
    path.write_bytes(png.SIGNATURE + _png_part(b"IHDR", header) + content + _png_part(b"IEND", b""))
    return path


@pytest.mark.parametrize("is_interlaced", [False, True])
@pytest.mark.parametrize("missing", [1, 30, 200])
@pytest.mark.parametrize("read", [read_image, read_image_size, read_panoptic_ids])
def test_png_whose_pixels_end_early_is_refused(
    tmp_path: Path, read: Callable[[Path], object], missing: int, is_interlaced: bool
) -> None:
    pixels = np.maximum(_noise(13, 9), 1)
    read(_write_png(tmp_path / "a.png", pixels, is_interlaced=is_interlaced))
    with pytest.raises(DatasetError, match=r"b.png: cannot be read as an image: truncated or corrupt: .*(early|trunc)"):
        read(_write_png(tmp_path / "b.png", pixels, missing=missing, is_interlaced=is_interlaced))


@pytest.mark.parametrize("is_interlaced", [False, True])
def test_dark_png_is_whole(tmp_path: Path, is_interlaced: bool) -> None:
    for size in ((1, 1), (2, 1), (1, 5), (13, 9), (64, 48)):
        pixels = np.zeros(size, np.uint8)
        assert not read_label_map(_write_png(tmp_path / "a.png", pixels, is_interlaced=is_interlaced)).any()


def test_png_header_that_its_bytes_cannot_hold_takes_no_memory(tmp_path: Path) -> None:
    path = _write_png(tmp_path / "a.png", np.zeros((1, 1, 3), np.uint8))
    content = path.read_bytes()
    header = struct.pack(">II5B", 9_000, 9_000, 8, 2, 0, 0, 0)
    path.write_bytes(content[:8] + _png_part(b"IHDR", header) + content[33:])
    with pytest.raises(DatasetError, match=r"bytes cannot hold width x height \(9000, 9000\)"):
        read_image(path)
