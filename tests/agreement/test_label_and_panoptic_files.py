"""One label map or panoptic file, whatever its form, says the same to training, evaluation and conversion."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from mask2former.data.mapper import DatasetMapper
from mask2former.data.own_data import read_own_data
from mask2former.data.own_data.conversion import convert_own_data
from mask2former.data.own_data.dataset import segment_masks
from mask2former.data.presets import MAPPER_PRESETS
from mask2former.data.transforms import AugmentationList
from mask2former.errors import DatasetError
from mask2former.evaluation import evaluate_panoptic, evaluate_sem_seg
from mask2former.files.maps import read_panoptic_ids
from mask2former.structures import Instances, id_to_rgb

HEIGHT, WIDTH = 13, 17  # odd
IGNORED = 255


def labels() -> np.ndarray:
    """Classes 0, 2 and 9, and pixels to be ignored."""
    found = np.full((HEIGHT, WIDTH), 2, np.uint8)
    found[:5], found[7:, 3:9], found[0, 0] = 0, 9, IGNORED
    return found


def encoded(image: Image.Image, image_format: str = "PNG", *, orientation: int = 1, **options: Any) -> bytes:
    buffer = io.BytesIO()
    if orientation != 1:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def with_palette() -> Image.Image:
    image = Image.fromarray(labels())
    image.putpalette([(7 * value) % 256 for value in range(768)])
    return image


def wide() -> np.ndarray:
    return labels().astype(np.uint16)


def lying(array: np.ndarray) -> Image.Image:
    """What orientation 6 turns upright."""
    return Image.fromarray(np.ascontiguousarray(np.rot90(array)))


LABEL_FORMS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "8 bits": (".png", lambda: encoded(Image.fromarray(labels()))),
    "16 bits": (".png", lambda: encoded(Image.fromarray(wide()))),
    "palette": (".png", lambda: encoded(with_palette())),
    "palette with a transparent colour": (".png", lambda: encoded(with_palette(), transparency=2)),
    "turned by EXIF": (".png", lambda: encoded(lying(labels()), orientation=6)),
    "TIFF": (".tif", lambda: encoded(Image.fromarray(labels()), "TIFF")),
    "packed TIFF": (".tif", lambda: encoded(Image.fromarray(labels()), "TIFF", compression="tiff_lzw")),
    "16 bits in TIFF": (".tif", lambda: encoded(Image.fromarray(wide()), "TIFF")),
    "TIFF turned by EXIF": (".tif", lambda: encoded(lying(labels()), "TIFF", orientation=6)),
    "bitmap": (".bmp", lambda: encoded(Image.fromarray(labels()), "BMP")),
}


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def trained_on(record: dict[str, Any], target: str) -> Instances:
    mapper = DatasetMapper(
        AugmentationList([]), image_format="RGB", preset=MAPPER_PRESETS[f"mask_former_{target}"], ignore_label=IGNORED
    )
    return mapper({**record, "height": HEIGHT, "width": WIDTH})["instances"]


@pytest.mark.parametrize("form", LABEL_FORMS)
def test_label_map_is_the_same_everywhere(form: str, tmp_path: Path) -> None:
    suffix, encode = LABEL_FORMS[form]
    photo = encoded(Image.new("RGB", (WIDTH, HEIGHT)))
    for part in ("train", "valid"):
        image = write(tmp_path / f"data/{part}/images/a.png", photo)
        file = write(tmp_path / f"data/{part}/masks/a{suffix}", encode())
    write(tmp_path / f"forms/a{suffix}", encode())

    targets = trained_on({"file_name": str(image), "sem_seg_file_name": str(file)}, "semantic")
    trained = np.full((HEIGHT, WIDTH), IGNORED)
    for class_id, mask in zip(targets.gt_classes.tolist(), targets.gt_masks.numpy(), strict=True):
        trained[mask] = class_id
    assert np.array_equal(trained, labels())

    names = [str(number) for number in range(10)]
    predicted = np.where(labels() == IGNORED, 1, labels()).astype(np.uint8)
    write(tmp_path / "found/a.png", encoded(Image.fromarray(predicted)))
    evaluated = evaluate_sem_seg(tmp_path / "forms", tmp_path / "found", class_names=names)["sem_seg"]
    assert evaluated["mIoU"] == 100.0

    (entry,) = read_own_data(tmp_path / "data").parts["train"]
    own = dict(zip((s.class_id for s in entry.segments), segment_masks(entry), strict=True))
    assert all(np.array_equal(mask, labels() == class_id) for class_id, mask in own.items())
    assert set(own) == {0, 2, 9, IGNORED}

    classes = convert_own_data(tmp_path / "data", tmp_path / "converted", target="png_tree").classes
    converted = np.asarray(Image.open(tmp_path / "converted/train/masks/a.png"))
    assert len(classes) == 3
    for class_id, entry_ in zip((0, 2, 9), classes, strict=True):
        assert np.array_equal(converted == entry_.id, labels() == class_id)


def ids() -> np.ndarray:
    found = np.full((HEIGHT, WIDTH), 1, np.int32)
    found[:5], found[7:, 3:9], found[0, 0] = 300, 70_000, 0
    return found


SEGMENTS = [{"id": 1, "category_id": 4}, {"id": 300, "category_id": 8}, {"id": 70_000, "category_id": 8}]
CATEGORIES = [{"id": 4, "name": "sky", "isthing": 0}, {"id": 8, "name": "cat", "isthing": 1}]


def colours() -> Image.Image:
    return Image.fromarray(id_to_rgb(ids()))


def with_alpha() -> Image.Image:
    image = colours()
    image.putalpha(100)
    return image


PANOPTIC_FORMS: dict[str, Callable[[], bytes]] = {
    "8 bits": lambda: encoded(colours()),
    "packed well": lambda: encoded(colours(), optimize=True),
    "alpha": lambda: encoded(with_alpha()),
    "transparent colour": lambda: encoded(colours(), transparency=(1, 0, 0)),
    "turned by EXIF": lambda: encoded(lying(id_to_rgb(ids())), orientation=6),
    "bitmap by another name": lambda: encoded(colours(), "BMP"),
    "TIFF by another name": lambda: encoded(colours(), "TIFF"),
    "filters of OpenCV": lambda: cv2.imencode(".png", id_to_rgb(ids())[..., ::-1])[1].tobytes(),
}


def write_panoptic(root: Path, content: bytes) -> Path:
    """Data of two parts as of COCO; returns the image of the first."""
    for part in ("train", "valid"):
        write(root / part / "a.jpg", encoded(Image.new("RGB", (WIDTH, HEIGHT)), "JPEG"))
        write(root / f"panoptic_{part}" / "a.png", content)
        annotation = {"image_id": 1, "file_name": "a.png", "segments_info": SEGMENTS}
        image = {"id": 1, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH}
        annotations = {"images": [image], "annotations": [annotation], "categories": CATEGORIES}
        write(root / "annotations" / f"panoptic_{part}.json", json.dumps(annotations).encode())
    return root / "train" / "a.jpg"


@pytest.mark.parametrize("form", PANOPTIC_FORMS)
def test_panoptic_file_is_the_same_everywhere(form: str, tmp_path: Path) -> None:
    content = PANOPTIC_FORMS[form]()
    image = write_panoptic(tmp_path / "data", content)
    folder, truth = tmp_path / "data/panoptic_train", tmp_path / "data/annotations/panoptic_train.json"
    masks = {(s["category_id"], s["id"]): ids() == s["id"] for s in SEGMENTS}

    segments = [{**s, "category_id": {4: 0, 8: 1}[s["category_id"]], "iscrowd": 0} for s in SEGMENTS]
    record = {"file_name": str(image), "pan_seg_file_name": str(folder / "a.png"), "segments_info": segments}
    targets = trained_on(record, "panoptic")
    assert targets.gt_classes.tolist() == [0, 1, 1]
    assert np.array_equal(targets.gt_masks.numpy(), list(masks.values()))

    write(tmp_path / "plain/a.png", encoded(colours()))
    for gt_folder, pred_folder in ((folder, tmp_path / "plain"), (tmp_path / "plain", folder)):
        assert evaluate_panoptic(truth, gt_folder, truth, pred_folder)["panoptic_seg"]["PQ"] == 100.0

    (entry,) = read_own_data(tmp_path / "data").parts["train"]
    assert [segment.class_id for segment in entry.segments] == [4, 8, 8]
    assert np.array_equal(segment_masks(entry), list(masks.values()))

    convert_own_data(tmp_path / "data", tmp_path / "converted", target="coco_panoptic")
    (file,) = (tmp_path / "converted/annotations/panoptic_train").glob("*.png")
    converted = read_panoptic_ids(file)
    for mask in masks.values():
        (value,) = np.unique(converted[mask])
        assert np.array_equal(converted == value, mask)
    assert not converted[ids() == 0].any()


@pytest.mark.parametrize("form", ["16 bits", "grey", "palette"])
def test_panoptic_file_of_another_form_is_refused_everywhere(form: str, tmp_path: Path) -> None:
    deep = cv2.imencode(".png", id_to_rgb(ids())[..., ::-1].astype(np.uint16))[1].tobytes()
    contents = {"16 bits": deep, "grey": encoded(colours().convert("L")), "palette": encoded(colours().convert("P"))}
    image = write_panoptic(tmp_path / "data", contents[form])
    folder, truth = tmp_path / "data/panoptic_train", tmp_path / "data/annotations/panoptic_train.json"
    record = {"file_name": str(image), "pan_seg_file_name": str(folder / "a.png"), "segments_info": SEGMENTS}
    for read in (
        lambda: trained_on(record, "panoptic"),
        lambda: evaluate_panoptic(truth, folder, truth, folder),
        lambda: read_own_data(tmp_path / "data"),
    ):
        with pytest.raises(DatasetError, match=r"a\.png: segment ids are coded in RGB"):
            read()
