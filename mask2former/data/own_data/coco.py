"""Instances and panoptic segmentation in COCO's formats, and which files of its layouts belong together.

Category ids may be any; masks are polygons, run-length codes or bitmaps, or pixels of a PNG file whose colours are
segment ids.

    annotations/instances_train2017.json, annotations/instances_val2017.json, train2017/, val2017/     as COCO itself
    train/_annotations.coco.json, valid/_annotations.coco.json, images beside them                     as exported
    train.json, valid.json, images in a folder of that name, in images/ or beside them
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mask2former.data.own_data.checked_files import ListedImage, check_files
from mask2former.data.own_data.dataset import (
    COCO_INSTANCES,
    COCO_PANOPTIC,
    TRAIN,
    VALID,
    DataClass,
    FileMask,
    ImageEntry,
    OwnDataset,
    Segment,
)
from mask2former.data.own_data.png_tree import count_values
from mask2former.data.own_data.scanning import scan
from mask2former.errors import DatasetError
from mask2former.files.coco import (
    Category,
    CocoInstances,
    id_shown,
    read_instances,
    refuse_shared_names,
    shared_names,
)
from mask2former.files.coco_panoptic import CocoPanoptic, check_segment_ids, read_panoptic
from mask2former.files.faults import Faults
from mask2former.files.images import exif_note, read_image_size
from mask2former.files.maps import read_panoptic_ids

_PART_WORD = re.compile(r"(?<![a-z])(train|valid|val|test)(?:ing|idation)?(\d*)(?![a-z])", re.IGNORECASE)
_NUM_LOOKED_FOR = 20  # files, until one is found
_JSON_FOLDERS = (
    ".",
    "annotations",
    "train",
    "valid",
    "val",
    "train/annotations",
    "valid/annotations",
    "val/annotations",
)


@dataclass(frozen=True)
class CocoFile:
    """A JSON file with its content, which is read once: it may be large."""

    path: Path
    kind: str
    content: Mapping[str, Any] = field(repr=False)


def part_of(json_file: Path, root: Path) -> str | None:
    """``TRAIN`` or ``VALID`` by the words in the path below ``root``, the file name first; ``"test"``; None."""
    for name in reversed(json_file.relative_to(root).with_suffix("").parts):
        word = _PART_WORD.search(name)
        if word:
            return {"train": TRAIN, "test": "test"}.get(word[1].lower(), VALID)
    return None


def json_files_below(root: Path) -> list[Path]:
    """JSON files where COCO data keep their annotations."""
    return [path for folder in _JSON_FOLDERS for path in sorted((root / folder).glob("*.json"))]


def is_partner(json_file: Path, train_file: Path, root: Path) -> bool:
    """Return whether a file is by its name the validation part of a training file: the same but for the part."""
    same_name = _PART_WORD.sub("*", json_file.name) == _PART_WORD.sub("*", train_file.name)
    return same_name and part_of(json_file, root) == VALID


def locate_files(
    json_file: Path,
    root: Path,
    file_names: Sequence[str],
    *,
    role: str,
    kinds: Sequence[str] = (),
    taken: Collection[Path] = (),
) -> list[Path | None]:
    """Return where the files lie that a JSON file names, all found as the first of them is; None for missing ones.

    ``kinds`` are further names that folders may bear. What is ``taken`` already is another kind of file. Names may have
    the backslashes of Windows, or lead to where the files lay when the JSON file was written.

    Raises:
        DatasetError: files are missing; the folders where they could lie are named.
    """
    tried = list(dict.fromkeys(_candidates(json_file, root, kinds)))
    for given in file_names[:_NUM_LOOKED_FOR]:
        for rename in (str, _with_slashes, _bare):
            for folder in tried:
                first = folder / rename(given)
                if first.is_file() and first not in taken:
                    renamed = [rename(name) for name in file_names]
                    return _all_below(folder, renamed, file_names, json_file=json_file, role=role)
    shown = ", ".join(str(folder) for folder in tried if folder.is_dir())
    raise DatasetError(f"{json_file}: {role} {file_names[0]} not found; looked in {shown}")


def _with_slashes(name: str) -> str:
    return name.replace("\\", "/")


def _bare(name: str) -> str:
    return _with_slashes(name).rpartition("/")[2]


def _all_below(
    folder: Path, renamed: Sequence[str], names: Sequence[str], *, json_file: Path, role: str
) -> list[Path | None]:
    faults, found = Faults(json_file), list[Path | None]()
    first_of: dict[str, str] = {}
    for short, name in zip(renamed, names, strict=True):
        if first_of.setdefault(short, name) != name:
            raise DatasetError(f"{json_file}: {first_of[short]} and {name} would both be {folder / short}")
        found.append(folder / short if os.path.lexists(folder / short) else None)
        if found[-1] is None:
            faults.add(f"{role} {name} not found; looked in {folder}")
    faults.refuse()
    return found


def _candidates(json_file: Path, root: Path, kinds: Sequence[str]) -> Iterator[Path]:
    word = _PART_WORD.search(json_file.stem)
    part = word[0] if word else ""
    bases = [json_file.parent, root, root.parent] if json_file.parent == root else [json_file.parent, root]
    after_kind = json_file.stem.partition("_")[2]  # instances_NAME.json, panoptic_NAME.json
    names = [json_file.stem, *kinds, part, after_kind, f"images/{part}", f"{part}/images", f"images/{after_kind}"]
    names += ["images", "data", "."]  # data: FiftyOne
    names[1:1] = [f"{part}/{kind}" for kind in kinds if part] + [f"{kind}/{part}" for kind in kinds if part]
    for base in bases:
        for name in names:
            yield base / name


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
        parts[part] = _read_instances(instances, coco_file.path, root, num_workers)
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


def _read_instances(instances: CocoInstances, json_file: Path, root: Path, num_workers: int | None) -> list[ImageEntry]:
    if not instances.images:
        raise DatasetError(f"{json_file} lists no image")
    names = [image["file_name"] for image in instances.images.values()]
    paths = locate_files(json_file, root, names, role="image")
    faults = Faults(json_file)
    entries = []
    for path, (image_id, image) in zip(paths, instances.images.items(), strict=True):
        if path is None:
            continue
        found = instances.annotations[image_id]
        for annotation in found:
            if "segmentation" not in annotation:
                faults.add(f"annotation {id_shown(annotation)} of {path.name} has no segmentation")
        entries.append((path, image, [annotation for annotation in found if "segmentation" in annotation]))
    faults.refuse()
    images = [_to_entry(*entry) for entry in entries]
    listed = [ListedImage(str(image.file), (image.height, image.width)) for image in images]
    description = f"images of {json_file.name}"
    checked = check_files(listed, source=str(json_file), description=description, num_workers=num_workers)
    return [image for image in images if str(image.file) not in checked.faulty]


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
        parts[part] = _read_panoptic(panoptic, coco_file.path, root, num_workers)
        unseen = sum(segment.area == 0 for image in parts[part] for segment in image.segments)
        found = [*panoptic.notes, panoptic.crowds_note()]
        found += [f"{unseen} segments have no pixel in their PNG"] if unseen else []
        notes += [f"{coco_file.path}: {note}" for note in found if note]
    classes = used_classes(common_categories(tables), counts, source=root, notes=notes)
    return OwnDataset(COCO_PANOPTIC, root, classes, parts, notes)


def _read_panoptic(panoptic: CocoPanoptic, json_file: Path, root: Path, num_workers: int | None) -> list[ImageEntry]:
    if not panoptic.annotations:
        raise DatasetError(f"{json_file} holds no annotation")
    faults, name_of = Faults(json_file), {}
    for image_id in panoptic.annotations:
        name_of[image_id] = panoptic.images.get(image_id, {}).get("file_name", "")
        if not name_of[image_id]:
            faults.add(f"image {image_id} has no 'file_name'")
    faults.refuse()
    annotations = [a for image_id, a in panoptic.annotations.items() if name_of[image_id]]
    if not annotations:
        return []
    png_names = [annotation["file_name"] for annotation in annotations]
    names = [name_of[annotation["image_id"]] for annotation in annotations]
    pngs = locate_files(json_file, root, png_names, role="panoptic PNG", kinds=("panoptic", "masks"))
    images = locate_files(json_file, root, names, role="image", taken=frozenset(filter(None, pngs)))
    found = zip(annotations, images, pngs, strict=True)
    items = [_Item(annotation, image, png) for annotation, image, png in found if image is not None and png is not None]
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
