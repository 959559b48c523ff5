"""Panoptic segmentation in COCO's format: a JSON file, and a PNG for each image whose colours are segment ids."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mask2former.data.datasets.coco import images_of
from mask2former.data.own_data.coco_files import CocoFile, find_folder
from mask2former.data.own_data.coco_instances import common_categories, read_categories
from mask2former.data.own_data.dataset import COCO_PANOPTIC, DataClass, FileMask, ImageEntry, OwnDataset, Segment
from mask2former.data.own_data.png_tree import count_values
from mask2former.data.own_data.scanning import scan
from mask2former.errors import DatasetError
from mask2former.files.images import exif_note, read_image_size
from mask2former.files.json_files import require_keys
from mask2former.files.panoptic import read_panoptic_ids

_VOID = 0


def read_coco_panoptic(files: Mapping[str, CocoFile], root: Path, *, num_workers: int | None = None) -> OwnDataset:
    """The annotated images of each part's file with the segments of their PNGs.

    Raises:
        DatasetError: a file is missing, damaged or of another size, the parts differ in categories, a PNG holds a
            segment that the JSON does not know, or a segment's category is unknown.
    """
    parts, tables = {}, {}
    for part, coco_file in files.items():
        tables[coco_file.path] = read_categories(coco_file.content, coco_file.path)
        parts[part] = _read_part(coco_file, root, tables[coco_file.path], num_workers)
    return OwnDataset(COCO_PANOPTIC, root, common_categories(tables), parts)


def _read_part(
    coco_file: CocoFile, root: Path, table: Mapping[int, DataClass], num_workers: int | None
) -> list[ImageEntry]:
    json_file, content = coco_file.path, coco_file.content
    images = images_of(content, json_file)
    annotations = []
    for annotation in content["annotations"]:
        annotation = require_keys(annotation, ("image_id", "file_name", "segments_info"), f"{json_file}: annotation")
        if annotation["image_id"] not in images:
            raise DatasetError(f"{json_file}: annotation of image {annotation['image_id']!r}, which is not listed")
        annotations.append((annotation, images[annotation["image_id"]]["file_name"]))
    if not annotations:
        raise DatasetError(f"{json_file} holds no annotation")
    png_names = [annotation["file_name"] for annotation, _ in annotations]
    pngs = find_folder(json_file, root, png_names, role="panoptic PNG", kinds=("panoptic", "masks"))
    folder = find_folder(json_file, root, [name for _, name in annotations], role="image")
    return scan(
        partial(_read_image, table=dict(table), folder=folder, png_folder=pngs, json_file=json_file),
        annotations,
        description=f"segments of {json_file.name}",
        num_workers=num_workers,
    )


def _read_image(
    item: tuple[dict[str, Any], str],
    *,
    table: Mapping[int, DataClass],
    folder: Path,
    png_folder: Path,
    json_file: Path,
) -> ImageEntry:
    annotation, file_name = item
    image, png = folder / file_name, png_folder / annotation["file_name"]
    ids, size = read_panoptic_ids(png), read_image_size(image)
    if ids.shape != size:
        raise DatasetError(f"{png} has (height, width) = {ids.shape}, its image {image} has {size}{exif_note(image)}")
    areas = count_values(ids)
    infos = [require_keys(s, ("id", "category_id"), f"{json_file}: segment") for s in annotation["segments_info"]]
    unlisted = sorted(set(areas) - {info["id"] for info in infos} - {_VOID})
    if unlisted:
        raise DatasetError(f"{png}: segment ids {unlisted[:5]} have no entry in {json_file}")
    segments = tuple(_to_segment(info, table, png, areas, json_file) for info in infos)
    return ImageEntry(image, size[0], size[1], annotation["image_id"], segments, png)


def _to_segment(
    info: Mapping[str, Any], table: Mapping[int, DataClass], png: Path, areas: Mapping[int, int], json_file: Path
) -> Segment:
    if info["category_id"] not in table:
        raise DatasetError(
            f"{png}: segment {info['id']} has category id {info['category_id']!r}, "
            f"categories of {json_file} have ids {sorted(table)[:20]}"
        )
    return Segment(
        info["category_id"],
        FileMask(png, info["id"], is_panoptic=True),
        instance_id=info["id"] if table[info["category_id"]].is_thing else None,
        area=areas.get(info["id"], 0),
        is_crowd=bool(info.get("iscrowd", 0)),
    )
