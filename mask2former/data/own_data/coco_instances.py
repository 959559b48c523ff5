"""Instances in COCO's JSON format; category ids may be any, masks polygons, run-length codes or bitmaps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mask2former.data.own_data.checked_files import ListedImage, check_files
from mask2former.data.own_data.coco_files import CocoFile, locate_files
from mask2former.data.own_data.dataset import COCO_INSTANCES, DataClass, ImageEntry, OwnDataset, Segment
from mask2former.errors import DatasetError
from mask2former.files.coco import (
    Category,
    CocoInstances,
    id_shown,
    read_instances,
    refuse_shared_names,
    shared_names,
)
from mask2former.files.json_files import Faults


def read_coco_instances(files: Mapping[str, CocoFile], root: Path, *, num_workers: int | None = None) -> OwnDataset:
    """Return the images of each part's file with one segment for each annotation.

    Raises:
        DatasetError: a file is missing, damaged or of another size than stated, the parts differ in categories, or an
            annotation is wrong or has no mask.
    """
    parts, tables, notes = {}, {}, []
    counts: Counter[int] = Counter()
    for part, coco_file in files.items():
        instances = read_instances(coco_file.path, content=coco_file.content)
        if not instances.categories:
            raise DatasetError(f"{coco_file.path} has no 'categories'")
        counts.update(a["category_id"] for found in instances.annotations.values() for a in found)
        found = [*instances.notes, instances.drop_empty(), instances.crowds_note()]
        notes += [f"{coco_file.path}: {note}" for note in found if note]
        tables[coco_file.path] = instances.categories
        parts[part] = _read_part(instances, coco_file.path, root, num_workers)
    classes = used_classes(common_categories(tables), counts, source=root, notes=notes)
    return OwnDataset(COCO_INSTANCES, root, classes, parts, notes)


def used_classes(
    classes: list[DataClass], counts: Mapping[int, int], *, source: Path, notes: list[str]
) -> list[DataClass]:
    """Return the classes without those that share the name of another and have no object, which ``notes`` then say.

    Some exports put a parent before its classes, called as one of them.

    Raises:
        DatasetError: two classes of one name have objects.
    """
    faults = Faults(source)
    categories = [Category(*vars(entry).values()) for entry in classes]
    refuse_shared_names(categories, counts, faults)
    faults.refuse()
    left_out = set()
    for name, ids in shared_names(categories).items():
        kept = next((category_id for category_id in ids if counts.get(category_id)), ids[-1])
        others = [category_id for category_id in ids if category_id != kept]
        notes.append(f"{source}: left out categories {others}: no objects, and called {name!r} as category {kept} is")
        left_out.update(others)
    return [entry for entry in classes if entry.id not in left_out]


def common_categories(tables: Mapping[Path, Mapping[int, Category]]) -> list[DataClass]:
    """Return the categories of all files, in order of ids.

    Raises:
        DatasetError: an id means different things in two files.
    """
    merged: dict[int, Category] = {}
    first = next(iter(tables))
    for json_file, table in tables.items():
        for category_id, entry in table.items():
            if merged.setdefault(category_id, entry) != entry:
                raise DatasetError(
                    f"category id {category_id} is {merged[category_id].name!r} in {first} "
                    f"and {entry.name!r} in {json_file}"
                )
    return [DataClass(*merged[category_id]) for category_id in sorted(merged)]


def _read_part(instances: CocoInstances, json_file: Path, root: Path, num_workers: int | None) -> list[ImageEntry]:
    if not instances.images:
        raise DatasetError(f"{json_file} lists no image")
    names = [image["file_name"] for image in instances.images.values()]
    paths = locate_files(json_file, root, names, role="image")
    faults = Faults(json_file)
    entries = []
    for path, (image_id, image) in zip(paths, instances.images.items(), strict=True):
        for annotation in instances.annotations[image_id]:
            if "segmentation" not in annotation:
                faults.add(f"annotation {id_shown(annotation)} of {path.name} has no segmentation")
        entries.append((path, image, instances.annotations[image_id]))
    faults.refuse()
    images = [_to_entry(*entry) for entry in entries]
    listed = [ListedImage(str(image.file), (image.height, image.width)) for image in images]
    description = f"images of {json_file.name}"
    check_files(listed, source=str(json_file), description=description, num_workers=num_workers)
    return images


def _to_entry(path: Path, image: Mapping[str, Any], annotations: list[dict[str, Any]]) -> ImageEntry:
    segments = tuple(
        Segment(
            annotation["category_id"],
            annotation["segmentation"],
            instance_id=number,
            area=annotation.get("area"),
            bbox_xywh=tuple(annotation["bbox"]) if "bbox" in annotation else None,
            is_crowd=bool(annotation["iscrowd"]),
        )
        for number, annotation in enumerate(annotations, start=1)
    )
    return ImageEntry(path, image["height"], image["width"], image["id"], segments)
