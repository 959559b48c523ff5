"""Panoptic segmentation in COCO's format: a JSON file, and a PNG for each image whose colours are segment ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mask2former.data.own_data.coco_files import CocoFile, locate_files
from mask2former.data.own_data.coco_instances import common_categories, used_classes
from mask2former.data.own_data.dataset import COCO_PANOPTIC, FileMask, ImageEntry, OwnDataset, Segment
from mask2former.data.own_data.png_tree import count_values
from mask2former.data.own_data.scanning import scan
from mask2former.errors import DatasetError
from mask2former.files.coco import Category
from mask2former.files.coco_panoptic import CocoPanoptic, check_segment_ids, read_panoptic
from mask2former.files.images import exif_note, read_image_size
from mask2former.files.maps import read_panoptic_ids


class _Item(NamedTuple):
    annotation: dict[str, Any]
    image: Path
    png: Path


def read_coco_panoptic(files: Mapping[str, CocoFile], root: Path, *, num_workers: int | None = None) -> OwnDataset:
    """Return the annotated images of each part's file with the segments of their PNGs.

    Raises:
        DatasetError: a file is missing, damaged or of another size, the parts differ in categories, a PNG holds a
            segment that the JSON does not know, or a segment's category is unknown.
    """
    parts, tables, notes = {}, {}, []
    counts: Counter[int] = Counter()
    for part, coco_file in files.items():
        panoptic = read_panoptic(coco_file.path, content=coco_file.content)
        if not panoptic.categories:
            raise DatasetError(f"{coco_file.path} has no 'categories'")
        counts.update(panoptic.counts())
        tables[coco_file.path] = panoptic.categories
        parts[part] = _read_part(panoptic, coco_file.path, root, num_workers)
        unseen = sum(segment.area == 0 for image in parts[part] for segment in image.segments)
        found = [*panoptic.notes, panoptic.crowds_note()]
        found += [f"{unseen} segments have no pixel in their PNG"] if unseen else []
        notes += [f"{coco_file.path}: {note}" for note in found if note]
    classes = used_classes(common_categories(tables), counts, source=root, notes=notes)
    return OwnDataset(COCO_PANOPTIC, root, classes, parts, notes)


def _read_part(panoptic: CocoPanoptic, json_file: Path, root: Path, num_workers: int | None) -> list[ImageEntry]:
    if not panoptic.annotations:
        raise DatasetError(f"{json_file} holds no annotation")
    png_names = [annotation["file_name"] for annotation in panoptic.annotations.values()]
    names = [panoptic.images.get(image_id, {}).get("file_name", "") for image_id in panoptic.annotations]
    if "" in names:
        raise DatasetError(f"{json_file}: image {list(panoptic.annotations)[names.index('')]} has no 'file_name'")
    pngs = locate_files(json_file, root, png_names, role="panoptic PNG", kinds=("panoptic", "masks"))
    images = locate_files(json_file, root, names, role="image", taken=frozenset(pngs))
    items = [_Item(*item) for item in zip(panoptic.annotations.values(), images, pngs, strict=True)]
    read = partial(_read_image, table=panoptic.categories, json_file=json_file)
    return scan(read, items, description=f"segments of {json_file.name}", num_workers=num_workers)


def _read_image(item: _Item, *, table: Mapping[int, Category], json_file: Path) -> ImageEntry:
    annotation, image, png = item
    ids, size = read_panoptic_ids(png), read_image_size(image)
    if ids.shape != size:
        raise DatasetError(f"{png} has (height, width) = {ids.shape}, its image {image} has {size}{exif_note(image)}")
    areas = count_values(ids)
    unlisted, _ = check_segment_ids(areas, annotation["segments_info"])
    if unlisted:
        raise DatasetError(f"{png}: segment ids {unlisted[:5]} have no entry in {json_file}")
    segments = tuple(_to_segment(info, table, png, areas) for info in annotation["segments_info"])
    return ImageEntry(image, size[0], size[1], annotation["image_id"], segments, png)


def _to_segment(info: Mapping[str, Any], table: Mapping[int, Category], png: Path, areas: Mapping[int, int]) -> Segment:
    return Segment(
        info["category_id"],
        FileMask(png, info["id"], is_panoptic=True),
        instance_id=info["id"] if table[info["category_id"]].is_thing else None,
        area=areas.get(info["id"], 0),
        is_crowd=bool(info["iscrowd"]),
    )
