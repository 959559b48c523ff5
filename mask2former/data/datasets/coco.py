"""Instances in COCO's JSON format, masks as polygons, run-length codes or bitmaps."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mask2former.data.catalog import DatasetCatalog, DatasetDict, MetadataCatalog
from mask2former.errors import DatasetError
from mask2former.files.json_files import read_json_object, require_folder, require_keys

logger = logging.getLogger(__name__)

XYWH_ABS = 1  # detectron2's BoxMode of COCO boxes: left, top, width, height in pixels
_MIN_POLYGON_NUMBERS = 6  # three points


def register_coco_instances(
    name: str, metadata: Mapping[str, Any], json_file: str | os.PathLike[str], image_root: str | os.PathLike[str]
) -> None:
    """Register ``name`` for a COCO instance data set; its files are read when it is first asked for.

    ``metadata`` may hold anything; class names and ids it lacks are taken from the JSON file on loading.
    """
    json_path, images = os.fspath(json_file), os.fspath(image_root)
    DatasetCatalog.register(name, lambda: load_coco_json(json_path, images, name))
    MetadataCatalog.get(name).set(
        **{"evaluator_type": "coco", **metadata, "json_file": json_path, "image_root": images},
    )


def load_coco_json(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    dataset_name: str | None = None,
    *,
    annotated: bool = True,
    content: Mapping[str, Any] | None = None,
) -> list[DatasetDict]:
    """Dataset dicts of all images of a COCO instance file.

    With ``dataset_name``, category ids become the contiguous ids of its metadata, which is completed from the
    file (``thing_classes``, ``thing_dataset_id_to_contiguous_id``). Without, ids stay as they are. ``annotated`` false
    reads a file of images alone, as of a test set; its dicts have no annotations. ``content`` is what the file holds,
    where it has been read.

    Raises:
        DatasetError: a file or folder is missing, or an entry is wrong; the message names it.
    """
    if content is None:
        content = read_json_object(json_file, ("images", "annotations") if annotated else ("images",))
    folder = require_folder(image_root, "image")
    if not content["images"]:
        raise DatasetError(f"{json_file} lists no image")
    id_map = _resolve_categories(content, json_file, dataset_name) if annotated else None
    annotations_of = _group_by_image(content, json_file) if annotated else {}
    dicts = []
    for image in content["images"]:
        record = _image_record(image, folder, json_file)
        if annotated:
            record["annotations"] = [
                _convert_annotation(a, record, id_map, f"{json_file}: annotation {_id_of(a)}")
                for a in annotations_of.pop(image["id"], ())
            ]
        dicts.append(record)
    _refuse_orphans(annotations_of, json_file)
    logger.info("Loaded %d images from %s", len(dicts), json_file)
    return dicts


def _image_record(image: Any, folder: Path, json_file: str | os.PathLike[str]) -> DatasetDict:
    image = require_keys(image, ("id", "file_name", "height", "width"), f"{json_file}: image {_id_of(image)}")
    return {
        "file_name": os.path.join(folder, image["file_name"]),
        "height": image["height"],
        "width": image["width"],
        "image_id": image["id"],
    }


def _refuse_orphans(annotations_of: dict[Any, list[dict[str, Any]]], json_file: str | os.PathLike[str]) -> None:
    for image_id, orphans in annotations_of.items():
        raise DatasetError(
            f"{json_file}: annotation {_id_of(orphans[0])} belongs to image {image_id}, which is not listed"
        )


def _id_of(entry: Any) -> Any:
    return entry.get("id", "without id") if isinstance(entry, dict) else "without id"


def _resolve_categories(
    content: Mapping[str, Any], json_file: str | os.PathLike[str], dataset_name: str | None
) -> dict[int, int] | None:
    if dataset_name is None:
        return None
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("thing_dataset_id_to_contiguous_id") is None:
        categories = content.get("categories")
        if not categories:
            raise DatasetError(f"{json_file} has no 'categories', and no class names are known for {dataset_name!r}")
        context = f"{json_file}: category"
        names = {c["id"]: c["name"] for c in (require_keys(c, ("id", "name"), context) for c in categories)}
        id_map = {dataset_id: index for index, dataset_id in enumerate(sorted(names))}
        try:
            metadata.set(thing_classes=[names[i] for i in sorted(names)], thing_dataset_id_to_contiguous_id=id_map)
        except ValueError as error:
            raise DatasetError(f"{json_file}: its categories contradict the registered ones: {error}") from error
    return metadata.thing_dataset_id_to_contiguous_id


def _group_by_image(content: Mapping[str, Any], json_file: str | os.PathLike[str]) -> dict[Any, list[dict[str, Any]]]:
    groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    seen = set()
    for annotation in content["annotations"]:
        context = f"{json_file}: annotation {_id_of(annotation)}"
        annotation = require_keys(annotation, ("image_id", "category_id"), context)
        # Some early COCO files repeat ids, and evaluation then matches wrongly without a word.
        if annotation.get("id") in seen:
            raise DatasetError(f"{context}: the id occurs twice")
        if annotation.get("id") is not None:
            seen.add(annotation["id"])
        if not isinstance(annotation["image_id"], (int, str)):
            raise DatasetError(f"{context}: 'image_id' must be a number or text, found {annotation['image_id']!r}")
        groups[annotation["image_id"]].append(annotation)
    return groups


def _convert_annotation(
    annotation: dict[str, Any], image: DatasetDict, id_map: dict[int, int] | None, context: str
) -> dict[str, Any]:
    category = annotation["category_id"]
    if id_map is not None and (not isinstance(category, int) or category not in id_map):
        raise DatasetError(f"{context}: category id {category!r} has no class; classes have ids {sorted(id_map)}")
    result: dict[str, Any] = {
        "category_id": category if id_map is None else id_map[category],
        "iscrowd": annotation.get("iscrowd", 0),
        "bbox_mode": XYWH_ABS,
        **{key: annotation[key] for key in ("id", "area") if key in annotation},
    }
    if "bbox" in annotation:
        result["bbox"] = _checked_box(annotation["bbox"], context)
    if "segmentation" in annotation:
        result["segmentation"] = _checked_segmentation(annotation["segmentation"], image, context)
    return result


def _checked_box(bbox: Any, context: str) -> list[float]:
    try:
        box = np.asarray(bbox, dtype=np.float64)
    except (TypeError, ValueError):
        box = np.empty(0)
    if box.shape != (4,) or not np.isfinite(box).all():
        raise DatasetError(f"{context}: 'bbox' must be 4 numbers (left, top, width, height), found {bbox!r}")
    return bbox


def _checked_segmentation(segmentation: Any, image: DatasetDict, context: str) -> Any:
    """Polygons, an RLE dict, or an array (H, W); sizes and counts are checked here, contents when decoded."""
    size = [image["height"], image["width"]]
    if isinstance(segmentation, dict):
        require_keys(segmentation, ("size", "counts"), f"{context}: RLE")
        if list(segmentation["size"]) != size:
            raise DatasetError(f"{context}: RLE has size {segmentation['size']}, its image (height, width) = {size}")
        return segmentation
    if not isinstance(segmentation, list) or not segmentation:
        raise DatasetError(f"{context}: 'segmentation' must hold polygons, an RLE or a bitmap, found {segmentation!r}")
    if _is_bitmap(segmentation, size):
        return np.asarray(segmentation, dtype=np.uint8)
    return _valid_polygons(segmentation, context)


def _is_bitmap(segmentation: Sequence[Any], size: list[int]) -> bool:
    # A list of H rows of W numbers could be H polygons; only a bitmap has nothing but zeros and ones.
    if len(segmentation) != size[0] or not all(isinstance(row, list) and len(row) == size[1] for row in segmentation):
        return False
    return all(value in (0, 1) for row in segmentation for value in row)


def _valid_polygons(polygons: list[Any], context: str) -> list[list[float]]:
    lengths = [len(p) if isinstance(p, list) else -1 for p in polygons]
    valid = [p for p, n in zip(polygons, lengths, strict=True) if n >= _MIN_POLYGON_NUMBERS and n % 2 == 0]
    if not valid:
        raise DatasetError(
            f"{context}: a polygon needs at least 3 points (6 numbers, x and y), found polygons of {lengths} numbers"
        )
    if len(valid) < len(polygons):
        logger.warning("%s: left out %d polygons of fewer than 3 points", context, len(polygons) - len(valid))
    for polygon in valid:
        # A sum of finite numbers is finite: one pass in C over what may be millions of points.
        try:
            finite = np.isfinite(sum(polygon))
        except TypeError:
            finite = False
        if not finite:
            raise DatasetError(f"{context}: a polygon holds something else than finite numbers")
    return valid


def images_of(content: Mapping[str, Any], json_file: str | Path) -> dict[Any, dict[str, Any]]:
    """The entries of ``images`` by id.

    Raises:
        DatasetError: an entry lacks its id or file name.
    """
    context = f"{json_file}: image"
    return {i["id"]: i for i in (require_keys(i, ("id", "file_name"), context) for i in content.get("images", ()))}
