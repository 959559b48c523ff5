"""One image file, whatever its form, is one picture to training, evaluation, prediction and conversion."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.config import get_cfg
from mask2former.data.mapper import DatasetMapper
from mask2former.data.own_data import read_own_data
from mask2former.data.own_data.conversion import convert_own_data
from mask2former.data.presets import MAPPER_PRESETS
from mask2former.data.transforms import AugmentationList
from mask2former.files.images import read_image, read_image_size
from mask2former.inference import predictor as predictor_module
from mask2former.inference.predictor import Predictor
from mask2former.inference.test_time_augmentation import CopyMaker

HEIGHT, WIDTH = 11, 15  # odd


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def by_pillow(mode: str, image_format: str, *, orientation: int = 1, **options: Any) -> Callable[[], bytes]:
    def encode() -> bytes:
        exif = Image.Exif()
        exif[0x0112] = orientation
        buffer = io.BytesIO()
        extra = {"exif": exif} if orientation != 1 else {}
        Image.fromarray(picture()).convert(mode).save(buffer, image_format, **extra, **options)
        return buffer.getvalue()

    return encode


def deep(suffix: str, *, channels: int = 3, bits: int = 16) -> Callable[[], bytes]:
    values = np.random.default_rng(1).integers(0, 1 << bits, (HEIGHT, WIDTH, channels)).astype(np.uint16)
    return lambda: cv2.imencode(suffix, values.squeeze())[1].tobytes()


FORMS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "RGB": (".png", by_pillow("RGB", "PNG")),
    "grey": (".png", by_pillow("L", "PNG")),
    "two tones": (".png", by_pillow("1", "PNG")),
    "palette": (".png", by_pillow("P", "PNG")),
    "palette with a transparent colour": (".png", by_pillow("P", "PNG", transparency=3)),
    "palette with transparencies": (".png", by_pillow("P", "PNG", transparency=bytes(range(200)))),
    "alpha": (".png", by_pillow("RGBA", "PNG")),
    "grey with alpha": (".png", by_pillow("LA", "PNG")),
    "EXIF in PNG": (".png", by_pillow("RGB", "PNG", orientation=6)),
    "EXIF in JPEG": (".jpg", by_pillow("RGB", "JPEG", orientation=8)),
    "EXIF in TIFF": (".tif", by_pillow("RGB", "TIFF", orientation=5)),
    "EXIF in packed TIFF": (".tif", by_pillow("RGB", "TIFF", orientation=6, compression="tiff_lzw")),
    "EXIF in WebP": (".webp", by_pillow("RGB", "WEBP", orientation=3)),
    "grey JPEG": (".jpg", by_pillow("L", "JPEG")),
    "CMYK": (".jpg", by_pillow("CMYK", "JPEG")),
    "bitmap": (".bmp", by_pillow("RGB", "BMP")),
    "16 bits of grey": (".png", deep(".png", channels=1)),
    "16 bits of colours": (".png", deep(".png")),
    "16 bits with alpha": (".png", deep(".png", channels=4)),
    "16 bits of grey in TIFF": (".tif", deep(".tif", channels=1)),
    "16 bits of colours in TIFF": (".tif", deep(".tif")),
    "12 bits of 16": (".png", deep(".png", bits=12)),
    "12 bits of 16 in grey TIFF": (".tif", deep(".tif", channels=1, bits=12)),
}


class Recorder(torch.nn.Module):
    """A model that keeps what it is given."""

    def forward(self, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return samples


@pytest.fixture
def as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor_module, "build_model", lambda cfg: Recorder())
    monkeypatch.setattr(predictor_module, "prepare_for_inference", lambda model: model)


def config(form: str, size: tuple[int, int]) -> Any:
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.WEIGHTS = "cpu", "MaskFormer", ""
    cfg.INPUT.MIN_SIZE_TEST = min(size)  # nothing is resized
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.FLIP = (min(size),), False
    cfg.INPUT.IMAGE_BITS = 12 if form.startswith("12 bits") else 16
    return cfg


def own_data(root: Path, suffix: str, content: bytes, size: tuple[int, int]) -> Path:
    """Images with masks, of one class, as users have them; returns the image."""
    for part in ("train", "valid"):
        for folder in ("images", "masks"):
            (root / part / folder).mkdir(parents=True)
        (root / part / "images" / f"a{suffix}").write_bytes(content)
        Image.fromarray(np.ones(size, np.uint8)).save(root / part / "masks" / "a.png")
    return root / "train" / "images" / f"a{suffix}"


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("form", FORMS)
def test_image_is_one_picture_everywhere(form: str, as_given: None, tmp_path: Path) -> None:
    suffix, encode = FORMS[form]
    is_on_its_side = "EXIF" in form and "WebP" not in form
    size = (WIDTH, HEIGHT) if is_on_its_side else (HEIGHT, WIDTH)
    path = own_data(tmp_path / "data", suffix, encode(), size)
    cfg = config(form, size)
    record = {"file_name": str(path), "height": size[0], "width": size[1], "annotations": []}

    preset = MAPPER_PRESETS["mask_former_instance"]
    bits = cfg.INPUT.IMAGE_BITS
    trained = DatasetMapper(AugmentationList([]), image_format="BGR", preset=preset, image_bits=bits)(record)["image"]
    seen = {
        "evaluation": DatasetMapper.from_config(cfg, is_train=False)(record)["image"],
        "augmented evaluation": next(CopyMaker.from_config(cfg).copies({"file_name": str(path)})).sample["image"],
    }
    predict = Predictor(cfg)
    kinds = {"path": path, "text": str(path), "bytes": path.read_bytes(), "PIL": Image.open(path)}
    seen.update({f"prediction from {kind}": predict(image)["image"] for kind, image in kinds.items()})
    for name, image in seen.items():
        assert torch.equal(image, trained), name
    assert trained.shape == (3, *size)
    assert trained.float().std() > 20  # neither clipped to white nor nearly black

    (entry,) = read_own_data(tmp_path / "data").parts["train"]
    assert (entry.height, entry.width) == read_image_size(path) == size
    convert_own_data(tmp_path / "data", tmp_path / "converted", target="png_tree")
    converted = tmp_path / "converted" / "train" / "images" / path.name
    assert np.array_equal(read_image(converted, bits=bits), trained.numpy().transpose(1, 2, 0))
