"""Cityscapes: pictures by city, with label maps, instance maps, panoptic annotations and polygons beside them.

Instances are drawn from polygons as in the published training, by the rule of detectron2: what stands later in a file
lies on top; each polygon is widened by half a pixel, because Cityscapes' own drawing is that much fatter, and loses
what lies on top of it; holes are filled.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mask2former.data.catalog import DatasetDict, MetadataCatalog
from mask2former.data.datasets.classes import class_table
from mask2former.data.datasets.coco import XYWH_ABS
from mask2former.data.datasets.coco_panoptic import convert_segments, resolve_categories
from mask2former.data.datasets.instance_maps import segments_of
from mask2former.errors import ConfigError, DatasetError
from mask2former.files.coco_panoptic import read_panoptic
from mask2former.files.faults import Faults
from mask2former.files.json_files import read_json, require_folder, require_keys
from mask2former.files.maps import read_label_map

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
