"""Annotations of labelme: one JSON file beside each image, with polygons, rectangles, circles and masks.

Shapes of one label and ``group_id`` are parts of one object. The labels that labelme itself gives a meaning,
``__ignore__`` and ``_background_``, are no objects.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mask2former.data.own_data.dataset import LABELME, TRAIN, VALID, DataClass, ImageEntry, OwnDataset, Segment
from mask2former.data.own_data.png_tree import PART_FOLDERS
from mask2former.data.own_data.scanning import IMAGE_SUFFIXES, refuse, scan
from mask2former.errors import DatasetError
from mask2former.files.images import exif_note, read_image_size
from mask2former.files.json_files import require_keys
from mask2former.structures import bitmasks_to_rles, check_polygons, polygons_to_bitmask

_NO_OBJECTS = ("__ignore__", "_background_")
_NUM_CIRCLE_POINTS = 64
_WITHOUT_AREA = ("line", "linestrip", "point", "points")


class _LabelledObject(NamedTuple):
    label: str
    polygons: list[list[float]]
    bitmap: np.ndarray | None  # (H, W) bool, of parts that are masks


class _LabelledImage(NamedTuple):
    file: Path
    size: tuple[int, int]
    objects: list[tuple[str, Any]]  # label, COCO segmentation
    left_out: Counter[str]


def is_labelme_json(content: Any) -> bool:
    """Whether a JSON object is one that labelme writes."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list)


def read_labelme(root: Path, *, num_workers: int | None = None) -> OwnDataset:
    """Images with one segment for each object; class ids count the labels in their alphabetical order.

    The parts are the folders ``train`` and ``valid`` (or ``val``); without them all files are one part.

    Raises:
        DatasetError: a JSON file is wrong, or its image is missing or of another size; an image has no JSON file.
    """
    folders = {p: root / name for p, names in PART_FOLDERS.items() for name in names if (root / name).is_dir()}
    if TRAIN not in folders:
        folders = {TRAIN: root}
    read = {part: _read_part(folder, num_workers) for part, folder in folders.items() if part in (TRAIN, VALID)}
    labels = sorted({label for images in read.values() for image in images for label, _ in image.objects})
    id_of = {label: class_id for class_id, label in enumerate(labels)}
    parts, number = {}, 0
    for part, images in read.items():
        parts[part] = [_to_entry(image, number + i, id_of) for i, image in enumerate(images, start=1)]
        number += len(images)
    left_out = sum((image.left_out for images in read.values() for image in images), Counter())
    notes = [f"left out {count} shapes: {reason}" for reason, count in sorted(left_out.items())]
    classes = [DataClass(class_id, label, is_thing=True) for label, class_id in id_of.items()]
    return OwnDataset(LABELME, root, classes, parts, notes)


def _read_part(folder: Path, num_workers: int | None) -> list[_LabelledImage]:
    json_files = sorted(folder.rglob("*.json"))
    if not json_files:
        raise DatasetError(f"{folder}: no labelme file (*.json) found")
    images = scan(_read_file, json_files, description=f"labelme files of {folder.name}", num_workers=num_workers)
    annotated = {image.file.resolve() for image in images}
    pictures = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    refuse(
        [str(path) for path in pictures if path.resolve() not in annotated],
        "images without a labelme file (one with an empty list of shapes says that there is no object)",
    )
    return images


def _read_file(json_file: Path) -> _LabelledImage:
    try:
        content = json.loads(json_file.read_bytes())
    except ValueError as error:
        raise DatasetError(f"{json_file} is not valid JSON: {error}") from error
    if not is_labelme_json(content):
        raise DatasetError(f"{json_file}: expected a labelme file with a list 'shapes'")
    image = _find_image(json_file, content)
    size = read_image_size(image)
    stated = (content.get("imageHeight") or size[0], content.get("imageWidth") or size[1])
    if stated != size:
        raise DatasetError(
            f"{json_file}: image has (height, width) = {size}, the file says {stated}: {image}{exif_note(image)}"
        )
    groups: dict[Any, _LabelledObject] = {}
    left_out: Counter[str] = Counter()
    for number, shape in enumerate(content["shapes"]):
        where = f"{json_file}: shape {number}"
        shape = require_keys(shape, ("label", "points"), where)
        label, kind = str(shape["label"]), shape.get("shape_type") or "polygon"
        if label in _NO_OBJECTS or kind in _WITHOUT_AREA:
            left_out[f"labelled {label}" if label in _NO_OBJECTS else f"a {kind} has no area"] += 1
            continue
        group_id = shape.get("group_id")
        key = (label, number, None) if group_id is None else (label, None, group_id)
        groups[key] = _add_shape(groups.get(key, _LabelledObject(label, [], None)), shape, kind, size, where)
    return _LabelledImage(image, size, [(o.label, _segmentation(o, size)) for o in groups.values()], left_out)


def _find_image(json_file: Path, content: Mapping[str, Any]) -> Path:
    stated = str(content.get("imagePath") or "").replace("\\", "/")  # labelme on Windows
    tried = [json_file.parent / stated] if stated else []
    tried += [json_file.parent / Path(stated).name] if stated else []
    tried += [json_file.with_suffix(suffix) for suffix in IMAGE_SUFFIXES]
    for path in tried:
        if path.is_file():
            return path
    raise DatasetError(f"{json_file}: image not found: {stated or json_file.stem} (imagePath)")


def _add_shape(
    labelled: _LabelledObject, shape: Mapping[str, Any], kind: str, size: tuple[int, int], where: str
) -> _LabelledObject:
    points = _points(shape["points"], where)
    if kind == "mask":
        bitmap = _paste(shape.get("mask"), points, size, where)
        union = bitmap if labelled.bitmap is None else labelled.bitmap | bitmap
        return labelled._replace(bitmap=union)
    if kind not in _OUTLINES:
        known = ", ".join([*_OUTLINES, "mask", *_WITHOUT_AREA])
        raise DatasetError(f"{where} ({labelled.label}): shape_type must be one of {known}, found {kind!r}")
    polygon = _OUTLINES[kind](points, where)
    check_polygons([polygon], f"{where} ({labelled.label}): ")
    return labelled._replace(polygons=[*labelled.polygons, polygon])


def _points(points: Any, where: str) -> list[tuple[float, float]]:
    try:
        return [(float(x), float(y)) for x, y in points]
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{where}: points must be pairs of numbers, found {str(points)[:80]}") from error


def _polygon(points: Sequence[tuple[float, float]], where: str) -> list[float]:
    return [value for point in points for value in point]


def _rectangle(points: Sequence[tuple[float, float]], where: str) -> list[float]:
    if len(points) == 4:  # newer versions write all corners
        return _polygon(points, where)
    (x0, y0), (x1, y1) = _two(points, where)
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def _circle(points: Sequence[tuple[float, float]], where: str) -> list[float]:
    (x, y), (edge_x, edge_y) = _two(points, where)
    radius = math.hypot(edge_x - x, edge_y - y)
    angles = [2 * math.pi * i / _NUM_CIRCLE_POINTS for i in range(_NUM_CIRCLE_POINTS)]
    return [value for a in angles for value in (x + radius * math.cos(a), y + radius * math.sin(a))]


def _two(points: Sequence[tuple[float, float]], where: str) -> Sequence[tuple[float, float]]:
    if len(points) != 2:
        raise DatasetError(f"{where}: expected 2 points, found {len(points)}")
    return points


_OUTLINES = {"polygon": _polygon, "rectangle": _rectangle, "circle": _circle}


def _paste(encoded: Any, points: Sequence[tuple[float, float]], size: tuple[int, int], where: str) -> np.ndarray:
    """The mask (H, W) of a picture in base64 whose box, its last pixels included, is given by two points."""
    (x0, y0), _ = _two(points, where)
    try:
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
            crop = np.asarray(picture.convert("L")) > 0
    except (TypeError, binascii.Error, OSError, ValueError) as error:
        raise DatasetError(f"{where}: 'mask' must be a picture in base64: {error}") from error
    mask = np.zeros(size, dtype=bool)
    top, left = max(round(y0), 0), max(round(x0), 0)
    part = mask[top : top + crop.shape[0], left : left + crop.shape[1]]
    if part.shape != crop.shape:
        raise DatasetError(f"{where}: its mask (height, width) {crop.shape} at {(top, left)} leaves the image {size}")
    part[...] = crop
    return mask


def _segmentation(labelled: _LabelledObject, size: tuple[int, int]) -> Any:
    if labelled.bitmap is None:
        return labelled.polygons
    mask = labelled.bitmap | polygons_to_bitmask(labelled.polygons, *size)
    return bitmasks_to_rles(mask[None])[0]


def _to_entry(image: _LabelledImage, image_id: int, id_of: Mapping[str, int]) -> ImageEntry:
    segments = tuple(
        Segment(id_of[label], segmentation, instance_id=number)
        for number, (label, segmentation) in enumerate(image.objects, start=1)
    )
    return ImageEntry(image.file, *image.size, image_id, segments)
