"""COCO panoptic: a JSON file, read and checked once, and the comparison of its PNG files of segment ids with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mask2former.errors import DatasetError, InputError
from mask2former.files.annotation_values import (
    Id,
    listed_id,
    numbered_id,
    plain_flag,
    plain_id,
    plain_name,
    plain_number,
)
from mask2former.files.coco import (
    Category,
    PathLike,
    drop_faulty,
    id_shown,
    read_categories,
    read_images,
    refuse_shared_names,
    unknown_category,
    without_entry,
)
from mask2former.files.faults import Faults
from mask2former.files.json_files import read_json, require_keys, require_lists
from mask2former.structures.segmentations import shown

VOID_ID = 0
NUM_IDS = 1 << 24  # what three bytes of colour can hold


@dataclass
class CocoPanoptic:
    """The content of a COCO panoptic file, every value checked and in one form.

    ``images`` by id: id and, if given, file_name, height, width; empty if the file lists none. ``annotations`` by image
    id: image_id, file_name (of the PNG), segments_info, a list of segments: id (1 and up), category_id, iscrowd (0 or
    1) and, if given, area.
    """

    source: PathLike
    images: dict[Id, dict[str, Any]]
    categories: dict[int, Category]
    annotations: dict[Id, dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    def counts(self) -> Counter[int]:
        """Return the number of segments of each category."""
        return Counter(s["category_id"] for a in self.annotations.values() for s in a["segments_info"])

    def crowds_note(self) -> str | None:
        """Return a note of how many segments are crowds and not trained on."""
        segments = [s["iscrowd"] for a in self.annotations.values() for s in a["segments_info"]]
        return f"left out {sum(segments)} of {len(segments)} segments: iscrowd 1" if any(segments) else None


def read_panoptic(
    path: PathLike,
    *,
    content: Any = None,
    needs_categories: bool = False,
    needs_isthing: bool = False,
    error: type[InputError] = DatasetError,
) -> CocoPanoptic:
    """Read and check a COCO panoptic file, or its ``content``.

    ``error`` is raised instead of DatasetError, for instance for predictions.

    Raises:
        DatasetError: the file cannot be read, or the faults of all its entries.
    """
    content = read_json(path, error=error) if content is None else content
    lists = (*(("categories",) if needs_categories else ()), "annotations")
    content = require_lists(content, lists, path, optional=("images", "categories"), error=error)
    faults = Faults(path, error=error)
    images = read_images(content.get("images") or (), faults, needs_files=False, needs_size=False)
    categories = read_categories(content.get("categories") or (), faults, needs_isthing=needs_isthing)
    panoptic = CocoPanoptic(path, images, categories, {})
    for entry in content["annotations"]:
        image_id = entry.get("image_id") if isinstance(entry, dict) else None
        where = f"annotation of image {shown(image_id)}"
        try:
            annotation = _read_annotation(entry, panoptic)
        except DatasetError as cause:
            faults.add(f"{where}: {without_entry(cause)}")
        else:
            panoptic.annotations[annotation["image_id"]] = annotation
    refuse_shared_names(categories.values(), panoptic.counts(), faults)
    faults.refuse()
    for image_id in drop_faulty(images):
        panoptic.annotations.pop(image_id, None)
    unused = len(images) - len(panoptic.annotations) if images else 0
    if unused > 0:
        panoptic.notes.append(f"left out {unused} of {len(images)} images: no annotation")
    return panoptic


def check_segment_ids(
    ids: np.ndarray | Iterable[int], segments: Iterable[Mapping[str, Any]]
) -> tuple[list[int], list[int]]:
    """Return the ids in a PNG that no segment lists, and the ids of segments that are not in the PNG.

    ``ids`` are its pixels, or the distinct values in it.
    """
    present = set(np.unique(ids).tolist() if isinstance(ids, np.ndarray) else ids) - {VOID_ID}
    listed = {segment["id"] for segment in segments}
    return sorted(present - listed), sorted(listed - present)


def _read_annotation(entry: Any, panoptic: CocoPanoptic) -> dict[str, Any]:
    entry = require_keys(entry, ("image_id", "file_name", "segments_info"), "entry")
    image_id = plain_id(entry["image_id"], "image_id")
    if panoptic.images:
        found = listed_id(image_id, panoptic.images)
        if found not in panoptic.images:
            raise DatasetError(f"image {shown(entry['image_id'])} is not listed")
        image_id = found  # type: ignore[assignment]
    if image_id in panoptic.annotations:
        raise DatasetError("the image is annotated twice")
    infos = entry["segments_info"] or ()
    if not isinstance(infos, (list, tuple)):
        raise DatasetError(f"'segments_info' must be a list, found {shown(infos)}")
    segments: dict[int, dict[str, Any]] = {}
    for info in infos:
        segment = _read_segment(info, panoptic.categories)
        if segment["id"] in segments:
            raise DatasetError(f"segment id {segment['id']} is listed twice")
        segments[segment["id"]] = segment
    return {
        **entry,
        "image_id": image_id,
        "file_name": plain_name(entry["file_name"]),
        "segments_info": list(segments.values()),
    }


def _read_segment(info: Any, categories: Mapping[int, Category]) -> dict[str, Any]:
    info = require_keys(info, ("id", "category_id"), "segment")
    segment_id = numbered_id(info["id"], "id")
    if not VOID_ID < segment_id < NUM_IDS:
        raise DatasetError(f"segment id {segment_id} must lie in 1..{NUM_IDS - 1} ({VOID_ID} is void)")
    category_id = numbered_id(info["category_id"], "category_id")
    if categories and category_id not in categories:
        raise DatasetError(f"segment {id_shown(info)}: {unknown_category(info['category_id'], categories)}")
    is_crowd = plain_flag(info.get("iscrowd"), "iscrowd")
    segment = {**info, "id": segment_id, "category_id": category_id, "iscrowd": is_crowd}
    if (area := plain_number(info.get("area"))) is not None:
        segment["area"] = area
    else:
        segment.pop("area", None)
    return segment
