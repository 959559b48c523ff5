"""COCO instance ground truth, and saved detections, checked before anything is computed from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mask2former.errors import DatasetError, InputError
from mask2former.files.json_files import read_json
from mask2former.files.opening import PathLike


class CocoGroundTruth:
    """Images, categories and annotations of a COCO instances json, or of ``content`` in that form.

    Raises:
        DatasetError: the file is missing or corrupt, or an annotation is incomplete or names an unknown image or
            category.
    """

    def __init__(self, json_file: PathLike, tasks: Sequence[str], *, content: Any = None) -> None:
        self.json_file = json_file
        content = read_json(json_file) if content is None else content
        for key in ("images", "annotations", "categories"):
            if not isinstance(content, dict) or not isinstance(content.get(key), list):
                raise DatasetError(f"{json_file}: expected a COCO instances json with a list {key!r}")
        for key, fields in (("images", ("id", "height", "width")), ("categories", ("id", "name"))):
            for i, entry in enumerate(content[key]):
                if not isinstance(entry, dict) or any(field not in entry for field in fields):
                    raise DatasetError(f"{json_file}: entry {i} of {key!r} needs {list(fields)}: {str(entry)[:200]}")
        self.image_sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        self.category_names: dict[int, str] = {c["id"]: c["name"] for c in content["categories"]}
        self._has_masks = needs_masks(tasks)
        self._annotations_of: dict[Any, list[dict[str, Any]]] = {}
        ids = set()
        for annotation in content["annotations"]:
            checked = self._checked(annotation, tasks)
            if checked["id"] in ids:
                raise DatasetError(f"{json_file}: two annotations have the id {checked['id']!r}")
            ids.add(checked["id"])
            self._annotations_of.setdefault(checked["image_id"], []).append(checked)

    def image_id_of(self, given: Any) -> Any:
        """The image id as the json has it; it may be given as number or text.

        Raises:
            InputError: there is no such image.
        """
        for image_id in (given, str(given), int(given) if str(given).isdecimal() else None):
            if image_id in self.image_sizes:
                return image_id
        raise InputError(f"image id {given!r} is not among the {len(self.image_sizes)} of {self.json_file}")

    def annotations_of(self, image_id: Any) -> list[dict[str, Any]]:
        """The annotations of an image, masks (where a task compares them) as run-length codes."""
        size = self.image_sizes[image_id]
        annotations = self._annotations_of.get(image_id, [])
        for annotation in annotations:
            if self._has_masks:  # converted only once: training evaluates a data set again and again
                annotation["segmentation"] = compressed_rle(annotation["segmentation"], size)
        return annotations

    def _checked(self, annotation: Any, tasks: Sequence[str]) -> dict[str, Any]:
        if not isinstance(annotation, dict) or any(k not in annotation for k in ("id", "image_id", "category_id")):
            fields = "'id', 'image_id' and 'category_id'"
            raise DatasetError(f"{self.json_file}: an annotation needs {fields}, found {str(annotation)[:200]}")
        where = f"{self.json_file}: annotation {annotation['id']}"
        if annotation["image_id"] not in self.image_sizes:
            raise DatasetError(f"{where}: image id {annotation['image_id']!r} is not among the images")
        if annotation["category_id"] not in self.category_names:
            known = sorted(self.category_names)
            raise DatasetError(f"{where}: category id {annotation['category_id']} is unknown, there are {known[:20]}")
        checked = {"iscrowd": 0, **annotation}
        size = self.image_sizes[annotation["image_id"]]
        if needs_masks(tasks):
            check_segmentation(annotation.get("segmentation"), size, where, DatasetError)
        if "bbox" in tasks:
            check_box(annotation.get("bbox"), where, DatasetError)
        if "area" not in checked:
            checked["area"] = _area_of(annotation, size)
        return checked


def read_detections(path: PathLike, truth: CocoGroundTruth, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Entries of a coco_instances_results.json.

    Raises:
        InputError: an entry is incomplete, names an unknown image or category, or has another size than its image.
    """
    entries = read_json(path, error=InputError)
    if not isinstance(entries, list):
        raise InputError(f"{path}: expected a list of detections, found {type(entries).__name__}")
    return [_checked_detection(entry, truth, tasks, f"{path}: entry {i}") for i, entry in enumerate(entries)]


def _checked_detection(entry: Any, truth: CocoGroundTruth, tasks: Sequence[str], where: str) -> dict[str, Any]:
    if not isinstance(entry, dict) or any(key not in entry for key in ("image_id", "category_id", "score")):
        raise InputError(f"{where} needs 'image_id', 'category_id' and 'score', found {str(entry)[:200]}")
    where = f"{where} (image {entry['image_id']!r})"
    if entry["image_id"] not in truth.image_sizes:
        raise InputError(f"{where}: the image is not among the {len(truth.image_sizes)} of {truth.json_file}")
    if entry["category_id"] not in truth.category_names:
        known = sorted(truth.category_names)
        raise InputError(f"{where}: category id {entry['category_id']} is unknown, there are {known[:20]}")
    if not isinstance(entry["score"], (int, float)) or not math.isfinite(entry["score"]):
        raise InputError(f"{where}: score must be a finite number, found {entry['score']!r}")
    checked = dict(entry)
    if needs_masks(tasks):
        size = truth.image_sizes[entry["image_id"]]
        check_segmentation(entry.get("segmentation"), size, where, InputError)
        # COCO's tools take polygons and plain run lengths for truth alone.
        checked["segmentation"] = compressed_rle(entry["segmentation"], size)
    if "bbox" in tasks:
        if "bbox" not in entry and needs_masks(tasks):
            checked["bbox"] = coco_mask.toBbox(checked["segmentation"]).tolist()
        check_box(checked.get("bbox"), where, InputError)
    return checked


def needs_masks(tasks: Sequence[str]) -> bool:
    """Whether one of the tasks compares masks."""
    return any(task in tasks for task in ("segm", "boundary"))


def check_box(box_xywh: Any, where: str, error: type[InputError]) -> None:
    """Raise ``error`` unless it is four finite numbers with width and height of at least 0."""
    if not isinstance(box_xywh, (list, tuple)) or len(box_xywh) != 4 or not _are_finite(box_xywh):
        raise error(f"{where}: bbox must be four finite numbers (x, y, width, height), found {box_xywh!r}")
    if min(box_xywh[2:]) < 0:
        raise error(f"{where}: bbox has a negative width or height: {box_xywh!r}")


def check_segmentation(segmentation: Any, size: tuple[int, int], where: str, error: type[InputError]) -> None:
    """Raise ``error`` unless it is a run-length code of that size (height, width) or polygons of at least 3 points."""
    if isinstance(segmentation, dict):
        if list(segmentation.get("size", [])) != list(size):
            raise error(f"{where}: RLE has size {segmentation.get('size')}, its image (height, width) = {list(size)}")
        counts = segmentation.get("counts")
        if isinstance(counts, list):
            if not _are_finite(counts) or sum(counts) != size[0] * size[1]:
                raise error(f"{where}: RLE counts must be numbers that sum to {size[0]} x {size[1]}")
        elif not isinstance(counts, (str, bytes)):
            raise error(f"{where}: RLE counts must be text or a list, found {type(counts).__name__}")
    elif isinstance(segmentation, list):
        if not segmentation:
            raise error(f"{where}: segmentation holds no polygon")
        for polygon in segmentation:
            if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not _are_finite(polygon):
                raise error(
                    f"{where}: a polygon is a list of x, y for at least 3 points (6 finite numbers), "
                    f"found {str(polygon)[:100]}"
                )
    else:
        raise error(f"{where}: segmentation must be polygons or RLE, found {type(segmentation).__name__}")


def _are_finite(numbers: Sequence[Any]) -> bool:
    return all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers)


def _area_of(annotation: Mapping[str, Any], size: tuple[int, int]) -> float:
    if annotation.get("segmentation"):
        return float(np.sum(coco_mask.area(compressed_rle(annotation["segmentation"], size))))
    return float(annotation["bbox"][2] * annotation["bbox"][3])


def compressed_rle(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Run-length code of polygons, plain run lengths or a run-length code, in an image of ``size`` (height, width)."""
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, *size)
    return segmentation
