"""Annotations of labelme: one JSON file beside each image, with polygons, rectangles, circles and masks.

Shapes of one label and ``group_id`` are parts of one object. The labels that labelme itself gives a meaning,
``__ignore__`` and ``_background_``, are no objects.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mask2former.data.own_data.dataset import LABELME, OwnDataset
from mask2former.data.own_data.labelled import NO_PIXEL, LabelledImage, labelled_dataset, part_folders, paste_mask
from mask2former.data.own_data.scanning import IMAGE_SUFFIXES, scan
from mask2former.errors import DatasetError
from mask2former.files.annotation_values import plain_id, plain_name
from mask2former.files.faults import Faults, note_headed_faults
from mask2former.files.images import exif_note, read_image_size
from mask2former.files.json_files import read_json, require_keys
from mask2former.structures import bitmasks_to_rles, check_segmentation, polygons_to_bitmask
from mask2former.structures.segmentations import MAX_PIXELS, has_pixels, shown, whole_number

_NO_OBJECTS = ("__ignore__", "_background_")
_NUM_CIRCLE_POINTS = 64
_SIDES = ("imageHeight", "imageWidth")
_FARTHEST = 2**31
_MAX_SHOWN = 300  # letters of a name in a message
_WITHOUT_AREA = ("line", "linestrip", "point", "points")


class _LabelledObject(NamedTuple):
    label: str
    polygons: list[list[float]]
    bitmap: np.ndarray | None  # (H, W) bool, of parts that are masks


def is_labelme_json(content: Any) -> bool:
    """Return whether a JSON object is one that labelme writes."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list)


def read_labelme(root: Path, *, num_workers: int | None = None) -> OwnDataset:
    """Return images with one segment for each object; class ids count the labels in their alphabetical order.

    The parts are the folders ``train`` and ``valid`` (or ``val``); without them all files are one part.

    Raises:
        DatasetError: a JSON file is wrong, or its image is missing or of another size; an image has no JSON file.
    """
    read = {part: _read_part(folder, num_workers) for part, folder in part_folders(root).items()}
    return labelled_dataset(LABELME, root, read)


def _read_part(folder: Path, num_workers: int | None) -> list[LabelledImage]:
    json_files = sorted(folder.rglob("*.json"))
    if not json_files:
        raise DatasetError(f"{folder}: no labelme file (*.json) found")
    images = scan(_read_file, json_files, description=f"labelme files of {folder.name}", num_workers=num_workers)
    annotated: dict[Path, Path] = {}
    twice = {}
    for image in images:
        first = annotated.setdefault(image.file.resolve(), image.source)
        if first != image.source:
            twice[image.file.resolve()] = f"{image.file} by {first} and {image.source}"
    note_headed_faults(list(twice.values()), "images annotated twice")
    pictures = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    note_headed_faults(
        [str(path) for path in pictures if path.resolve() not in annotated and not path.with_suffix(".json").is_file()],
        "images without a labelme file (one with an empty list of shapes says that there is no object)",
    )
    return [image for image in images if image.file.resolve() not in twice]


def _read_file(json_file: Path) -> LabelledImage:
    content = read_json(json_file)
    if not is_labelme_json(content):
        raise DatasetError(f"{json_file}: expected a labelme file with a list 'shapes'")
    image = _find_image(json_file, content)
    size = read_image_size(image)
    stated = tuple(size[i] if content.get(key) is None else whole_number(content[key]) for i, key in enumerate(_SIDES))
    if stated != size:
        raise DatasetError(
            f"{json_file}: image has (height, width) = {size}, the file says {stated}: {image}{exif_note(image)}"
        )
    groups: dict[Any, _LabelledObject] = {}
    changed: Counter[tuple[str, str]] = Counter()
    faults = Faults(json_file)
    for number, shape in enumerate(content["shapes"]):
        try:
            _add_shape(shape, number, groups, size, changed)
        except DatasetError as error:
            faults.add(f"shape {number}{_label_shown(shape)}: {error}")
    faults.refuse()
    objects = [(o.label, _segmentation(o, size)) for o in groups.values()]
    seen = [(label, segmentation) for label, segmentation in objects if has_pixels(segmentation, size)]
    changed[NO_PIXEL] += len(objects) - len(seen)
    return LabelledImage(json_file, image, size, seen, +changed)


def _label_shown(shape: Any) -> str:
    return f" ({shape['label']})" if isinstance(shape, dict) and isinstance(shape.get("label"), str) else ""


def _find_image(json_file: Path, content: Mapping[str, Any]) -> Path:
    stated = ""
    if content.get("imagePath"):
        try:
            stated = plain_name(content["imagePath"], "imagePath").replace("\\", "/")  # labelme on Windows
        except DatasetError as error:
            raise DatasetError(f"{json_file}: {error}") from error
    tried = [json_file.parent / stated] if stated else []
    tried += [json_file.parent / Path(stated).name] if stated else []
    tried += [json_file.with_suffix(suffix) for suffix in IMAGE_SUFFIXES]
    for path in tried:
        if os.path.isfile(path):  # which takes names that the system refuses for no file
            return path
    raise DatasetError(f"{json_file}: image not found: {stated[:_MAX_SHOWN] or json_file.stem} (imagePath)")


def _add_shape(
    shape: Any,
    number: int,
    groups: dict[Any, _LabelledObject],
    size: tuple[int, int],
    changed: Counter[tuple[str, str]],
) -> None:
    """Add a shape to the object that it is a part of, or ``changed`` says why not."""
    shape = require_keys(shape, ("label", "points"), "expected a shape")
    label, kind = str(plain_id(shape["label"], "label")), shape.get("shape_type") or "polygon"
    if label in _NO_OBJECTS or kind in _WITHOUT_AREA:
        changed["left out", f"labelled {label}" if label in _NO_OBJECTS else f"a {kind} has no area"] += 1
        return
    group_id = None if shape.get("group_id") is None else plain_id(shape["group_id"], "group_id")
    key = (label, number, None) if group_id is None else (label, None, group_id)
    labelled = groups.get(key, _LabelledObject(label, [], None))
    points = _points(shape["points"], size)
    if kind == "mask":
        bitmap = _paste(shape.get("mask"), points, size, changed)
        groups[key] = labelled._replace(bitmap=bitmap if labelled.bitmap is None else labelled.bitmap | bitmap)
        return
    if not isinstance(kind, str) or kind not in _OUTLINES:
        known = ", ".join([*_OUTLINES, "mask", *_WITHOUT_AREA])
        raise DatasetError(f"shape_type must be one of {known}, found {shown(kind)}")
    polygon = check_segmentation([_OUTLINES[kind](points)], size)
    groups[key] = labelled._replace(polygons=[*labelled.polygons, *polygon])


def _points(points: Any, size: tuple[int, int]) -> list[tuple[float, float]]:
    try:
        pairs = [(float(x), float(y)) for x, y in points]
    except (TypeError, ValueError, OverflowError) as error:
        raise DatasetError(f"points must be pairs of numbers, found {shown(points)}") from error
    if not all(math.isfinite(value) and abs(value) < _FARTHEST for pair in pairs for value in pair):
        raise DatasetError(f"points must lie in or near the image (height, width) = {size}, found {shown(points)}")
    return pairs


def _polygon(points: Sequence[tuple[float, float]]) -> list[float]:
    return [value for point in points for value in point]


def _rectangle(points: Sequence[tuple[float, float]]) -> list[float]:
    if len(points) == 4:  # newer versions write all corners
        return _polygon(points)
    (x0, y0), (x1, y1) = _two(points)
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def _circle(points: Sequence[tuple[float, float]]) -> list[float]:
    (x, y), (edge_x, edge_y) = _two(points)
    radius = math.hypot(edge_x - x, edge_y - y)
    angles = [2 * math.pi * i / _NUM_CIRCLE_POINTS for i in range(_NUM_CIRCLE_POINTS)]
    return [value for a in angles for value in (x + radius * math.cos(a), y + radius * math.sin(a))]


def _two(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    if len(points) != 2:
        raise DatasetError(f"expected 2 points, found {len(points)}")
    return points


_OUTLINES = {"polygon": _polygon, "rectangle": _rectangle, "oriented_rectangle": _rectangle, "circle": _circle}


def _paste(
    encoded: Any, points: Sequence[tuple[float, float]], size: tuple[int, int], changed: Counter[tuple[str, str]]
) -> np.ndarray:
    """Return the mask (H, W) of a picture in base64 whose box, its last pixels included, is given by two points."""
    (x0, y0), _ = _two(points)
    try:
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise DatasetError(f"'mask' is a picture of {picture.width} x {picture.height} pixels")
            crop = np.asarray(picture.convert("L")) > 0
    except DatasetError:
        raise
    except (TypeError, binascii.Error, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"'mask' must be a picture in base64: {error}") from error
    mask, is_whole = paste_mask(crop, (round(x0), round(y0)), size)
    if not is_whole:
        changed["clipped", "a mask reaches over the edge of its image"] += 1
    return mask


def _segmentation(labelled: _LabelledObject, size: tuple[int, int]) -> Any:
    if labelled.bitmap is None:
        return labelled.polygons
    mask = labelled.bitmap | polygons_to_bitmask(labelled.polygons, *size)
    return bitmasks_to_rles(mask[None])[0]
