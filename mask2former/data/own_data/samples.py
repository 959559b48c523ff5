"""An image with its segments as two maps, to which any format can be brought and from which each is written.

Segments of maps do not overlap: where they did, the smaller lies on top. Every writer fills an empty folder with
``train`` and ``val`` or ``valid`` parts; images keep their encoding.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from mask2former.data.own_data.dataset import TRAIN, VALID, DataClass, ImageEntry, OwnDataset, Segment, segment_masks
from mask2former.errors import DatasetError
from mask2former.files.atomic import write_bytes_atomic, write_json, write_text_atomic
from mask2former.files.pictures import encode_picture, write_picture
from mask2former.structures import bitmasks_to_rles, id_to_rgb, mask_to_box_xywh

BACKGROUND = 0  # class of pixels that belong to no segment
MAX_CLASS_ID, MAX_INSTANCE_ID = 255, 65535


class Region(NamedTuple):
    """A segment of a sample: the pixels of one class and instance."""

    class_id: int
    instance_id: int
    mask: np.ndarray  # (H, W) bool


@dataclass(frozen=True)
class Sample:
    """An encoded image, and maps (H, W): ``class_ids`` uint8, 0 is background, and ``instance_ids`` uint16.

    ``name`` is that of the image file below the folder of its part, different for each.
    """

    name: str
    image: bytes
    class_ids: np.ndarray
    instance_ids: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.class_ids.shape[0], self.class_ids.shape[1]

    def regions(self) -> Iterator[Region]:
        """Yield the segments, in order of class and instance."""
        keys = self.class_ids.astype(np.int64) * (MAX_INSTANCE_ID + 1) + self.instance_ids
        for key in np.unique(keys[self.class_ids != BACKGROUND]).tolist():
            class_id, instance_id = divmod(key, MAX_INSTANCE_ID + 1)
            yield Region(class_id, instance_id, keys == key)


Parts = Mapping[str, Iterable[Sample]]  # the samples of each part: train, valid


def numbered_classes(classes: Sequence[DataClass]) -> list[DataClass]:
    """Return the classes with the ids 1, 2, … in their order: what maps hold, and 0 is left for the background.

    Raises:
        DatasetError: more classes than maps of one byte tell apart, or two of one name.
    """
    if len(classes) > MAX_CLASS_ID:
        raise DatasetError(f"{len(classes)} classes; annotations of one byte tell {MAX_CLASS_ID} apart")
    names = [entry.name for entry in classes]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DatasetError(f"two classes are called {twice!r}; semantic_class_to_id needs different names")
    return [DataClass(number, entry.name, entry.is_thing) for number, entry in enumerate(classes, start=1)]


def part_samples(dataset: OwnDataset, part: str, classes: Sequence[DataClass]) -> Iterator[Sample]:
    """Yield the images of a part; the place of a class in ``classes``, counted from 1, is its id in the maps.

    Segments of other classes and crowds are background.

    Raises:
        DatasetError: a file cannot be read, or an image has more segments than a map can hold.
    """
    number_of = {entry.id: number for number, entry in enumerate(classes, start=1)}
    names = _names(dataset.parts[part])
    for image, name in zip(dataset.parts[part], names, strict=True):
        segments = [s for s in image.segments if s.class_id in number_of and not s.is_crowd]
        class_ids, instance_ids = _maps(image, segments, number_of)
        try:
            content = image.file.read_bytes()
        except OSError as error:
            raise DatasetError(f"{image.file}: {error.strerror}") from error
        yield Sample(name, content, class_ids, instance_ids)


def _maps(
    image: ImageEntry, segments: Sequence[Segment], number_of: Mapping[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    if len(segments) > MAX_INSTANCE_ID:
        raise DatasetError(f"{image.file}: {len(segments)} segments, a map can hold {MAX_INSTANCE_ID}")
    masks = segment_masks(image, segments)
    class_ids = np.zeros((image.height, image.width), dtype=np.uint8)
    instance_ids = np.zeros((image.height, image.width), dtype=np.uint16)
    for index in np.argsort(-masks.sum((1, 2), dtype=np.int64), kind="stable").tolist():
        class_ids[masks[index]] = number_of[segments[index].class_id]
        instance_ids[masks[index]] = index + 1
    return class_ids, instance_ids


def _names(images: Sequence[ImageEntry]) -> list[str]:
    """File names; with numbers before them where files of different folders bear the same."""
    names = [image.file.name for image in images]
    if len({Path(name).stem for name in names}) == len(names):
        return names
    digits = int(math.log10(len(names))) + 1
    return [f"{number:0{digits}d}_{name}" for number, name in enumerate(names)]


_COCO_PARTS = {TRAIN: "train", VALID: "val"}
_PNG_VOID = 255  # does not train, unless said otherwise


def write_coco_instances(folder: Path, parts: Parts, classes: Sequence[DataClass]) -> None:
    """``annotations/instances_train.json``, images in ``train``, and ``val`` likewise; things alone.

    Raises:
        DatasetError: no class is a thing.
    """
    things = [entry for entry in classes if entry.is_thing]
    if not things:
        raise DatasetError("no class is a thing, COCO instances would be empty; coco-panoptic and png hold stuff")
    ids = {entry.id for entry in things}

    def annotate(image: dict[str, Any], sample: Sample) -> list[dict[str, Any]]:
        return [_instance(image["id"], region) for region in sample.regions() if region.class_id in ids]

    _write_coco(folder, parts, _categories(things), "instances", annotate)


def write_coco_panoptic(folder: Path, parts: Parts, classes: Sequence[DataClass]) -> None:
    """``annotations/panoptic_train.json`` with PNGs in a folder of that name, images in ``train``; ``val`` likewise."""

    def annotate(image: dict[str, Any], sample: Sample) -> list[dict[str, Any]]:
        ids, infos = np.zeros(sample.size, dtype=np.int32), []
        for number, region in enumerate(sample.regions(), start=1):
            ids[region.mask] = number
            area, box = int(region.mask.sum()), list(mask_to_box_xywh(region.mask))
            infos.append({"id": number, "category_id": region.class_id, "area": area, "bbox": box, "iscrowd": 0})
        png = f"{image['id']:012d}.png"
        write_picture(id_to_rgb(ids), folder / "annotations" / f"panoptic_{image['part']}" / png)
        return [{"image_id": image["id"], "file_name": png, "segments_info": infos}]

    _write_coco(folder, parts, _categories(classes), "panoptic", annotate)


def write_labelme(folder: Path, parts: Parts, classes: Sequence[DataClass]) -> None:
    """``train/a.json`` with shapes that are masks beside ``train/a.jpg``; ``valid`` likewise."""
    names = {entry.id: entry.name for entry in classes}
    for part, samples in parts.items():
        for sample in samples:
            write_image(folder / part, sample)
            named = [(names[region.class_id], region.mask) for region in sample.regions()]
            content = labelme_content(Path(sample.name).name, sample.size, named)
            write_json(content, (folder / part / sample.name).with_suffix(".json"))


def labelme_content(image_name: str, size: tuple[int, int], named: Iterable[tuple[str, np.ndarray]]) -> dict[str, Any]:
    """Return the content of a labelme file: ``size`` (height, width), and name and mask (H, W) of each shape."""
    return {
        "version": "5.0.0",
        "flags": {},
        "shapes": [_shape(mask, name) for name, mask in named if mask.any()],
        "imagePath": image_name,
        "imageData": None,
        "imageHeight": size[0],
        "imageWidth": size[1],
    }


def write_png_tree(folder: Path, parts: Parts, classes: Sequence[DataClass]) -> None:
    """``train/images/a.jpg``, ``train/masks/a.png`` of class ids, 255 where there is none; and ``classes.txt``.

    Raises:
        DatasetError: a class has the id 255.
    """
    if any(entry.id == _PNG_VOID for entry in classes):
        raise DatasetError(f"class id {_PNG_VOID} marks pixels of no class in PNG masks")
    for part, samples in parts.items():
        for sample in samples:
            write_image(folder / part / "images", sample)
            labels = np.where(sample.class_ids == BACKGROUND, _PNG_VOID, sample.class_ids).astype(np.uint8)
            write_picture(labels, (folder / part / "masks" / sample.name).with_suffix(".png"))
    write_text_atomic("".join(f"{c.id}: {c.name}\n" for c in classes), folder / "classes.txt")


def _write_coco(
    folder: Path,
    parts: Parts,
    categories: list[dict[str, Any]],
    kind: str,
    annotate: Callable[[dict[str, Any], Sample], list[dict[str, Any]]],
) -> None:
    for part, samples in parts.items():
        name = _COCO_PARTS[part]
        content: dict[str, Any] = {"info": {}, "images": [], "categories": categories, "annotations": []}
        for number, sample in enumerate(samples, start=1):
            write_image(folder / name, sample)
            height, width = sample.size
            image = {"id": number, "file_name": sample.name, "height": height, "width": width}
            content["images"].append(image)
            content["annotations"] += annotate({**image, "part": name}, sample)
        if kind == "instances":
            content["annotations"] = [{"id": i, **entry} for i, entry in enumerate(content["annotations"], start=1)]
        write_json(content, folder / "annotations" / f"{kind}_{name}.json")


def write_image(folder: Path, sample: Sample) -> None:
    """Write the image of a sample below the folder of its part, encoded as it was."""
    write_bytes_atomic(sample.image, folder / sample.name, is_durable=False)


def _categories(classes: Sequence[DataClass]) -> list[dict[str, Any]]:
    return [{"id": entry.id, "name": entry.name, "isthing": int(entry.is_thing)} for entry in classes]


def _instance(image_id: int, region: Region) -> dict[str, Any]:
    rle = bitmasks_to_rles(region.mask[None])[0]
    return {
        "image_id": image_id,
        "category_id": region.class_id,
        "segmentation": rle,
        "area": int(coco_mask.area(rle)),
        "bbox": list(mask_to_box_xywh(region.mask)),
        "iscrowd": 0,
    }


def _shape(mask: np.ndarray, label: str) -> dict[str, Any]:
    x, y, width, height = mask_to_box_xywh(mask)
    crop = mask[y : y + height, x : x + width].astype(np.uint8) * 255
    return {
        "label": label,
        "points": [[x, y], [x + width - 1, y + height - 1]],  # labelme's boxes of masks include their last pixels
        "group_id": None,
        "shape_type": "mask",
        "flags": {},
        "mask": base64.b64encode(encode_picture(crop)).decode(),
    }
