"""A data set written down once its files were looked at: a JSON file for each part, in COCO's form if there is one.

Ids are those of the files; what does not train is left out. Evaluators read the same files. Data without a validation
part get one here: a fixed share of the images, chosen by their names.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mask2former.data.own_data.dataset import (
    COCO_INSTANCES,
    COCO_PANOPTIC,
    PNG_TREE,
    TRAIN,
    VALID,
    DataClass,
    FileMask,
    ImageEntry,
    OwnDataset,
    Segment,
    segment_masks,
)
from mask2former.data.own_data.formats import format_named
from mask2former.data.own_data.png_tree import VOID_ID
from mask2former.files.atomic import write_json
from mask2former.files.maps import read_panoptic_ids
from mask2former.files.pictures import write_picture
from mask2former.structures import bitmasks_to_rles, encode_segmentation, id_to_rgb

_VOID = 0


def index_file(folder: str | Path, part: str) -> Path:
    """Where the index of a part lies."""
    return Path(folder) / f"{part}.json"


def write_index(dataset: OwnDataset, classes: Sequence[DataClass], folder: Path) -> None:
    """Write the index of every part; file names are relative to the data set's root where they lie below it."""
    form = format_named(dataset.format).index_form
    annotate = _ANNOTATE[form]
    trained = {entry.id for entry in classes}
    root = Path(os.path.abspath(dataset.root))
    for part, images in dataset.parts.items():
        content: dict[str, Any] = {
            "info": {"description": f"{part} part of {root}", "format": dataset.format},
            "images": [_image(image, root) for image in images],
            "categories": [{"id": c.id, "name": c.name, "isthing": int(c.is_thing)} for c in classes],
            "annotations": [],
        }
        for number, image in enumerate(images):
            segments = [segment for segment in image.segments if segment.class_id in trained]
            content["annotations"] += annotate(image, segments, root, folder / part / f"{number:012d}.png")
        if form == COCO_INSTANCES:
            content["annotations"] = [{"id": i, **a} for i, a in enumerate(content["annotations"], start=1)]
        write_json(content, index_file(folder, part))


def _image(image: ImageEntry, root: Path) -> dict[str, Any]:
    return {"id": image.image_id, "file_name": _below(image.file, root), "height": image.height, "width": image.width}


def _below(file: Path, root: Path) -> str:
    path = os.path.abspath(file)
    return Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else path


def _label_map(image: ImageEntry, segments: Sequence[Segment], root: Path, target: Path) -> list[dict[str, Any]]:
    file = image.mask_file
    if file is None:  # masks in colours, or of other forms: a map is made of them
        file, labels = target, np.full((image.height, image.width), VOID_ID, dtype=np.int32)
        for segment, mask in zip(segments, segment_masks(image, segments), strict=True):
            labels[mask] = segment.class_id
        write_picture(labels.astype(np.uint8 if labels.max() <= VOID_ID else np.uint16), file)
    return [{"image_id": image.image_id, "file_name": _below(file, root)}]


def _instances(image: ImageEntry, segments: Sequence[Segment], root: Path, target: Path) -> list[dict[str, Any]]:
    return [_instance(image, segment) for segment in segments]


def _instance(image: ImageEntry, segment: Segment) -> dict[str, Any]:
    segmentation = segment.mask
    assert not isinstance(segmentation, FileMask)
    if isinstance(segmentation, np.ndarray):
        segmentation = bitmasks_to_rles(segmentation[None].astype(bool))[0]
    area, box = segment.area, segment.bbox_xywh
    if area is None or box is None:
        rle = encode_segmentation(segmentation, (image.height, image.width))
        area = int(coco_mask.area(rle)) if area is None else area
        box = tuple(coco_mask.toBbox(rle).tolist()) if box is None else box
    return {
        "image_id": image.image_id,
        "category_id": segment.class_id,
        "segmentation": segmentation,
        "area": area,
        "bbox": list(box),
        "iscrowd": int(segment.is_crowd),
    }


def _panoptic(image: ImageEntry, segments: Sequence[Segment], root: Path, target: Path) -> list[dict[str, Any]]:
    png = image.mask_file
    assert png is not None
    if len(segments) < len(image.segments):  # what does not train is void, or predictions there would count as wrong
        ids = read_panoptic_ids(png)
        kept = [segment.mask.value for segment in segments]
        png = target  # numbered: an id might lead out of the folder
        write_picture(id_to_rgb(np.where(np.isin(ids, kept), ids, _VOID)), png)
    infos = [
        {
            "id": segment.mask.value,
            "category_id": segment.class_id,
            "area": segment.area,
            "iscrowd": int(segment.is_crowd),
        }
        for segment in segments
    ]
    return [{"image_id": image.image_id, "file_name": _below(png, root), "segments_info": infos}]


_Annotate = Callable[[ImageEntry, Sequence[Segment], Path, Path], list[dict[str, Any]]]
_ANNOTATE: Mapping[str, _Annotate] = {
    PNG_TREE: _label_map,
    COCO_INSTANCES: _instances,
    COCO_PANOPTIC: _panoptic,
}

HELD_OUT_SHARE = 0.1


def hold_out(dataset: OwnDataset) -> str | None:
    """Move a tenth of the training images, at least one, to the validation part where there is none.

    The same images at every run. A single image is used for both. Returns what was done, None where nothing.
    """
    if dataset.parts.get(VALID):
        return None
    images = dataset.parts[TRAIN]
    if len(images) == 1:
        dataset.parts[VALID] = list(images)
        return "no validation part, and a single image: it is evaluated on what it was trained on"
    number = max(1, round(HELD_OUT_SHARE * len(images)))
    held_out = {id(image) for image in sorted(images, key=lambda image: _place(dataset, image))[:number]}
    dataset.parts[VALID] = [image for image in images if id(image) in held_out]
    dataset.parts[TRAIN] = [image for image in images if id(image) not in held_out]
    shown = ", ".join(image.file.name for image in dataset.parts[VALID][:5]) + (" …" if number > 5 else "")
    return (
        f"no validation part: {number} of {len(images)} images ({HELD_OUT_SHARE:.0%}, chosen by their names) are held "
        f"out of training for it: {shown}"
    )


def _place(dataset: OwnDataset, image: ImageEntry) -> str:
    name = image.file.relative_to(dataset.root) if image.file.is_relative_to(dataset.root) else image.file.name
    return hashlib.md5(str(name).encode(), usedforsecurity=False).hexdigest()
