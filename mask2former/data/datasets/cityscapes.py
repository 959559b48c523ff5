"""Cityscapes: pictures by city, with label maps, instance maps and panoptic annotations beside them."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from mask2former.data.catalog import DatasetDict, MetadataCatalog
from mask2former.data.datasets.cityscapes_polygons import POLYGONS_KEY
from mask2former.data.datasets.classes import class_table
from mask2former.data.datasets.coco import XYWH_ABS
from mask2former.data.datasets.coco_panoptic import convert_segments, resolve_categories
from mask2former.data.datasets.instance_maps import segments_of
from mask2former.errors import DatasetError
from mask2former.files.coco_panoptic import read_panoptic
from mask2former.files.json_files import Faults, require_folder
from mask2former.files.maps import read_label_map

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]

IMAGE_SUFFIX = "_leftImg8bit.png"
INSTANCES_PER_CLASS = 1000  # an instance map holds class id × 1000 + number, or the class id of a group
_NUM_READERS = 8


def load_cityscapes_sem_seg(image_dir: PathLike, gt_dir: PathLike) -> list[DatasetDict]:
    """Return dataset dicts with the maps of training ids (0 to 18, 255 ignored).

    Raises:
        DatasetError: a folder is missing or empty, or an image has no label file.
    """
    return [
        _record(image, stem) | {"sem_seg_file_name": str(label_file(image, gt_dir, "labelTrainIds"))}
        for stem, image in city_images(image_dir).items()
    ]


def load_cityscapes_instances(image_dir: PathLike, gt_dir: PathLike) -> list[DatasetDict]:
    """Return dataset dicts with instances (run-length codes) of the eight thing classes; groups are crowds.

    Reads every instance map, in several threads.

    Raises:
        DatasetError: a folder or file is missing, or a file is damaged.
    """
    things = [c.id for c in class_table("cityscapes") if c.isthing]
    read = partial(_instance_record, gt_dir=gt_dir, contiguous_of={c: i for i, c in enumerate(things)})
    images = city_images(image_dir)
    with ThreadPoolExecutor(min(_NUM_READERS, os.cpu_count() or 1)) as pool:
        dicts = list(pool.map(read, images.items()))
    logger.info("Loaded %d images from %s", len(dicts), image_dir)
    return dicts


def load_cityscapes_panoptic(
    json_file: PathLike, image_dir: PathLike, panoptic_root: PathLike, *, gt_dir: PathLike, metadata: str
) -> list[DatasetDict]:
    """Return dataset dicts of the annotated images, with contiguous classes in ``segments_info``.

    Raises:
        DatasetError: a folder or file is missing, or an annotation is wrong or belongs to no image.
    """
    panoptic = read_panoptic(json_file)
    panoptic_folder = require_folder(panoptic_root, "panoptic segmentation")
    contiguous_of = resolve_categories(panoptic, MetadataCatalog.get(metadata))
    images = city_images(image_dir)
    faults, dicts = Faults(json_file), []
    for image_id, annotation in panoptic.annotations.items():
        if not isinstance(image_id, str) or image_id not in images:
            faults.add(f"annotation of image {image_id}: no *{IMAGE_SUFFIX} of this name below {image_dir}")
            continue
        record = _record(images[image_id], str(image_id))
        record["pan_seg_file_name"] = str(panoptic_folder / annotation["file_name"])
        record["sem_seg_file_name"] = str(label_file(images[image_id], gt_dir, "labelTrainIds"))
        record["segments_info"] = convert_segments(annotation, contiguous_of, faults)
        dicts.append(record)
    faults.refuse()
    if not dicts:
        raise DatasetError(f"{json_file} holds no annotation")
    return dicts


def city_images(image_dir: PathLike) -> dict[str, Path]:
    """Return images <city>/<stem>_leftImg8bit.png by their stem, sorted by name."""
    folder = require_folder(image_dir, "image")
    images = {path.name.removesuffix(IMAGE_SUFFIX): path for path in sorted(folder.glob(f"*/*{IMAGE_SUFFIX}"))}
    if not images:
        raise DatasetError(f"no <city>/*{IMAGE_SUFFIX} below {folder}")
    return images


def label_file(image: Path, gt_dir: PathLike, kind: str) -> Path:
    """Return the annotation of an image; ``kind`` is labelIds, labelTrainIds or instanceIds.

    Raises:
        DatasetError: there is no such file.
    """
    stem = image.name.removesuffix(IMAGE_SUFFIX)
    path = Path(gt_dir) / image.parent.name / f"{stem}_gtFine_{kind}.png"
    if not path.is_file():
        made_by = "; made by: python datasets/prepare_cityscapes.py" if kind == "labelTrainIds" else ""
        raise DatasetError(f"{kind} file of {image} not found: {path}{made_by}")
    return path


def _record(image: Path, stem: str) -> DatasetDict:
    return {"file_name": str(image), "image_id": stem}


def _instance_record(item: tuple[str, Path], gt_dir: PathLike, contiguous_of: Mapping[int, int]) -> DatasetDict:
    stem, image = item
    instance_map = label_file(image, gt_dir, "instanceIds")
    polygons = str(instance_map).removesuffix("instanceIds.png") + "polygons.json"
    ids = read_label_map(instance_map)
    annotations: list[dict[str, Any]] = []
    for segment in segments_of(ids):
        is_group = segment.id < INSTANCES_PER_CLASS
        category = segment.id if is_group else segment.id // INSTANCES_PER_CLASS
        if category in contiguous_of:
            annotations.append(
                {
                    "category_id": contiguous_of[category],
                    "iscrowd": int(is_group),
                    "bbox": list(segment.box),
                    "bbox_mode": XYWH_ABS,
                    "segmentation": segment.to_rle(ids.shape),
                }
            )
    height, width = ids.shape
    sizes = {"height": height, "width": width}
    return _record(image, stem) | sizes | {"annotations": annotations, POLYGONS_KEY: polygons}
