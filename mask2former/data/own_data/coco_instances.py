"""Instances in COCO's JSON format; category ids may be any, masks polygons, run-length codes or bitmaps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mask2former.data.datasets.coco import load_coco_json
from mask2former.data.own_data.coco_files import CocoFile, find_folder
from mask2former.data.own_data.dataset import COCO_INSTANCES, DataClass, ImageEntry, OwnDataset, Segment
from mask2former.data.own_data.scanning import check_image_size, refuse, scan
from mask2former.errors import DatasetError
from mask2former.files.json_files import require_keys


def read_coco_instances(files: Mapping[str, CocoFile], root: Path, *, num_workers: int | None = None) -> OwnDataset:
    """The images of each part's file with one segment for each annotation.

    Raises:
        DatasetError: a file is missing, damaged or of another size than stated, the parts differ in categories, or an
            annotation is wrong or has no mask.
    """
    parts, tables = {}, {}
    for part, coco_file in files.items():
        tables[coco_file.path] = read_categories(coco_file.content, coco_file.path)
        parts[part] = _read_part(coco_file, root, tables[coco_file.path], num_workers)
    return OwnDataset(COCO_INSTANCES, root, common_categories(tables), parts)


def read_categories(content: Mapping[str, Any], json_file: Path) -> dict[int, DataClass]:
    """The categories of a COCO file by id; without ``isthing`` they are things.

    Raises:
        DatasetError: there is none, or one lacks id or name, or occurs twice.
    """
    if not isinstance(content.get("categories"), list) or not content["categories"]:
        raise DatasetError(f"{json_file} has no 'categories'")
    table: dict[int, DataClass] = {}
    for category in content["categories"]:
        category = require_keys(category, ("id", "name"), f"{json_file}: category")
        if not isinstance(category["id"], int) or category["id"] in table:
            found = f"found {category['id']!r} of {category['name']!r}"
            raise DatasetError(f"{json_file}: ids of categories must be different whole numbers, {found}")
        table[category["id"]] = DataClass(category["id"], str(category["name"]), bool(category.get("isthing", 1)))
    return table


def common_categories(tables: Mapping[Path, Mapping[int, DataClass]]) -> list[DataClass]:
    """The categories of all files, in order of ids.

    Raises:
        DatasetError: an id means different things in two files.
    """
    merged: dict[int, DataClass] = {}
    first = next(iter(tables))
    for json_file, table in tables.items():
        for class_id, entry in table.items():
            if merged.setdefault(class_id, entry) != entry:
                raise DatasetError(
                    f"category id {class_id} is {merged[class_id].name!r} in {first} and {entry.name!r} in {json_file}"
                )
    return [merged[class_id] for class_id in sorted(merged)]


def _read_part(
    coco_file: CocoFile, root: Path, table: Mapping[int, DataClass], num_workers: int | None
) -> list[ImageEntry]:
    json_file, content = coco_file.path, coco_file.content
    names = [require_keys(i, ("file_name",), f"{json_file}: image")["file_name"] for i in content["images"]]
    if not names:
        raise DatasetError(f"{json_file} lists no image")
    folder = find_folder(json_file, root, names, role="image")
    records = load_coco_json(json_file, folder, content=content)
    problems = [problem for record in records for problem in _problems(record, table)]
    refuse(problems, str(json_file))
    entries = [_to_entry(record) for record in records]
    scan(
        partial(check_entry, source=str(json_file)),
        entries,
        description=f"images of {json_file.name}",
        num_workers=num_workers,
    )
    return entries


def check_entry(entry: ImageEntry, *, source: str) -> None:
    """Raise DatasetError unless the image is there and has the size that ``source`` states."""
    check_image_size(entry.file, (entry.height, entry.width), source)


def _problems(record: Mapping[str, Any], table: Mapping[int, DataClass]) -> list[str]:
    problems = []
    for annotation in record["annotations"]:
        where = f"annotation {annotation.get('id', '')} of {Path(record['file_name']).name}"
        if annotation["category_id"] not in table:
            known = f"categories have ids {sorted(table)[:20]}"
            problems.append(f"{where} has category id {annotation['category_id']!r}, {known}")
        elif "segmentation" not in annotation:
            problems.append(f"{where} has no segmentation")
    return problems


def _to_entry(record: Mapping[str, Any]) -> ImageEntry:
    segments = tuple(
        Segment(
            annotation["category_id"],
            annotation["segmentation"],
            instance_id=number,
            area=annotation.get("area"),
            bbox_xywh=tuple(annotation["bbox"]) if "bbox" in annotation else None,
            is_crowd=bool(annotation["iscrowd"]),
        )
        for number, annotation in enumerate(record["annotations"], start=1)
    )
    return ImageEntry(Path(record["file_name"]), record["height"], record["width"], record["image_id"], segments)
