"""Instances of Cityscapes out of the polygons of its JSON files, as the published training draws them.

The rule is detectron2's: what stands later in a file lies on top; each polygon is widened by half a pixel, because
Cityscapes' own drawing is that much fatter, and loses what lies on top of it; holes are filled.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from tqdm import tqdm

from mask2former.data.catalog import DatasetDict
from mask2former.data.datasets.classes import class_table
from mask2former.data.datasets.coco import XYWH_ABS
from mask2former.errors import ConfigError, DatasetError
from mask2former.files.json_files import read_json, require_keys

POLYGONS_KEY = "polygons_file_name"  # of a dataset dict: the JSON file of its image

_OPTION = "DATASETS.CITYSCAPES_POLYGONS false trains on the instance maps"
_HALF_PIXEL = 0.5  # coordinates are whole, of pixel centres
_QUARTER_SEGMENTS = 4  # straight lines in a quarter of a rounded corner
_WITHOUT_LABEL = "license plate"  # id -1: lies on nothing
_GROUP = "group"
# Labels that are not evaluated, but hide what lies below them.
_OTHERS = frozenset(
    (
        *("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "parking"),
        *("rail track", "guard rail", "bridge", "tunnel", "polegroup", "caravan", "trailer"),
    )
)


def with_polygons(dicts: Sequence[DatasetDict]) -> list[DatasetDict]:
    """Dataset dicts whose annotations are polygons, where they name a file of them; the others as they are.

    Raises:
        ConfigError: shapely is not installed.
        DatasetError: a file is missing or wrong.
    """
    if not any(POLYGONS_KEY in record for record in dicts):
        return list(dicts)
    try:
        import shapely  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"polygons of Cityscapes need shapely: pip install 'mask2former[cityscapes]'; {_OPTION}"
        ) from error
    things = [entry.name for entry in class_table("cityscapes") if entry.isthing]
    read = partial(_with_own_polygons, contiguous_of={name: index for index, name in enumerate(things)})
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # shapely computes outside of Python's lock
        return list(tqdm(pool.map(read, dicts), "polygons", len(dicts), leave=False, disable=None))


def _with_own_polygons(record: DatasetDict, contiguous_of: Mapping[str, int]) -> DatasetDict:
    if POLYGONS_KEY not in record:
        return record
    path = record[POLYGONS_KEY]
    if not os.path.isfile(path):
        raise DatasetError(f"polygons of {record['file_name']} not found: {path}; {_OPTION}")
    content = require_keys(read_json(path), ("objects", "imgHeight", "imgWidth"), str(path))
    size = (content["imgHeight"], content["imgWidth"])
    if size != (record["height"], record["width"]):
        raise DatasetError(f"{path}: (imgHeight, imgWidth) = {size}, expected {(record['height'], record['width'])}")
    return {**record, "annotations": visible_instances(content["objects"], contiguous_of, source=str(path))}


def visible_instances(objects: Any, contiguous_of: Mapping[str, int], *, source: str) -> list[dict[str, Any]]:
    """Annotations of the objects of a file that are instances of the classes ``contiguous_of``, the last object first.

    Raises:
        DatasetError: an object is malformed, or its label is none of Cityscapes; the message begins with ``source``.
    """
    from shapely import Polygon

    if not isinstance(objects, list):
        raise DatasetError(f"{source}: expected a list under 'objects', found {type(objects).__name__}")
    others = _OTHERS | {entry.name for entry in class_table("cityscapes")}
    annotations, covered = [], Polygon()
    for index, entry in reversed(list(enumerate(objects))):
        where = f"{source}: object {index}"
        entry = require_keys(entry, ("label", "polygon"), where)
        if "deleted" in entry or entry["label"] == _WITHOUT_LABEL:
            continue
        label = str(entry["label"])
        is_group = label not in others and label.endswith(_GROUP)
        name = label.removesuffix(_GROUP) if is_group else label
        if name not in others:
            raise DatasetError(f"{where}: unknown label {label!r}")
        polygon = _widened(entry["polygon"], where)
        visible = polygon.difference(covered) if name in contiguous_of else Polygon()
        covered = covered.union(polygon)
        if not visible.is_empty:
            annotations.append(_annotation(visible, contiguous_of[name], is_group=is_group))
    return annotations


def _widened(points: Any, where: str) -> Any:
    from shapely import Polygon
    from shapely.errors import ShapelyError

    try:
        polygon = Polygon([(float(x) + _HALF_PIXEL, float(y) + _HALF_PIXEL) for x, y in points])
    except (TypeError, ValueError, ShapelyError) as error:
        raise DatasetError(f"{where}: its polygon needs at least 3 points [x, y]: {error}") from error
    return polygon.buffer(_HALF_PIXEL, quad_segs=_QUARTER_SEGMENTS)


def _annotation(visible: Any, category: int, *, is_group: bool) -> dict[str, Any]:
    parts = [part for part in getattr(visible, "geoms", [visible]) if part.geom_type == "Polygon"]
    left, top, right, bottom = visible.bounds
    return {
        "category_id": category,
        "iscrowd": int(is_group),
        "bbox": [left, top, right - left, bottom - top],
        "bbox_mode": XYWH_ABS,
        # Outlines alone: holes are filled, as published.
        "segmentation": [[value for point in part.exterior.coords for value in point] for part in parts],
    }
