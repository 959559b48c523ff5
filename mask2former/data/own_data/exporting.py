"""Writing samples as COCO instances, COCO panoptic, labelme files or a tree of PNG masks; the readers here read them.

Every writer fills an empty folder with ``train`` and ``val`` or ``valid`` parts; images keep their encoding.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mask2former.data.own_data.dataset import TRAIN, VALID, DataClass
from mask2former.data.own_data.formats import Parts
from mask2former.data.own_data.samples import BACKGROUND, Region, Sample
from mask2former.errors import DatasetError
from mask2former.files.atomic import write_bytes_atomic, write_json, write_text_atomic
from mask2former.files.pictures import encode_picture, write_picture
from mask2former.structures import bitmasks_to_rles, id_to_rgb, mask_to_box_xywh

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
            content: dict[str, Any] = {
                "version": "5.0.0",
                "flags": {},
                "shapes": [_shape(region, names[region.class_id]) for region in sample.regions()],
                "imagePath": Path(sample.name).name,
                "imageData": None,
                "imageHeight": sample.size[0],
                "imageWidth": sample.size[1],
            }
            write_json(content, (folder / part / sample.name).with_suffix(".json"))


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


def _shape(region: Region, label: str) -> dict[str, Any]:
    x, y, width, height = mask_to_box_xywh(region.mask)
    crop = region.mask[y : y + height, x : x + width].astype(np.uint8) * 255
    return {
        "label": label,
        "points": [[x, y], [x + width - 1, y + height - 1]],  # labelme's boxes of masks include their last pixels
        "group_id": None,
        "shape_type": "mask",
        "flags": {},
        "mask": base64.b64encode(encode_picture(crop)).decode(),
    }
