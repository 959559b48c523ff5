"""Label maps as semantic segmentation toolboxes lay them out: two folders, and perhaps a table of classes.

The layouts are those of mmsegmentation 1.2 (``img_dir/train``, ``ann_dir/train``), ADE20K's SceneParsing release
(``images/training``, ``annotations/training``, ``objectInfo150.txt``), CamVid (``train``, ``train_labels``,
``class_dict.csv``), Roboflow (``train/a.jpg``, ``train/a_mask.png``, ``_classes.csv``) and flat ``images`` and
``masks``. A mask bears the name of its image, perhaps with an ending such as ``_mask``. Masks in colours need a table:
``class_dict.csv`` (name,r,g,b) or ``labelmap.txt`` (name:r,g,b::).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mask2former.data.own_data.dataset import TRAIN, VALID, DataClass, OwnDataset
from mask2former.data.own_data.formats import DataFormat, Parts, register_format
from mask2former.data.own_data.png_tree import MASK_SUFFIXES, VOID_ID
from mask2former.data.own_data.samples import BACKGROUND, write_image
from mask2former.data.own_data.scanning import IMAGE_SUFFIXES, check_pairs, files_by_stem, scan
from mask2former.data.own_data.voc import LABEL_TABLE, Labels, MaskPair, read_class_map, read_label_table
from mask2former.errors import DatasetError
from mask2former.files.atomic import write_text_atomic
from mask2former.files.faults import Faults
from mask2former.files.inputs import read_file
from mask2former.files.pictures import write_picture

_PAIRS = (  # of {part} and its images, its masks; the first that is there holds
    ("img_dir/{}", "ann_dir/{}"),
    ("images/{}", "annotations/{}"),
    ("images/{}", "masks/{}"),
    ("images/{}", "labels/{}"),
    ("{}/images", "{}/masks"),
    ("{}/images", "{}/labels"),
    ("{}", "{}_labels"),
    ("{}", "{}annot"),
    ("{}", "{}_mask"),
)
_FLAT = (("images", "masks"), ("imgs", "masks"), ("images", "annotations"), ("images", "labels"))
_PART_NAMES = {TRAIN: ("train", "training"), VALID: ("val", "validation", "valid")}
_ENDING = re.compile(r"[_-](mask|masks|label|labels|labelTrainIds|seg|segmentation|gt|L|P)$")
_MASK = "_mask"
COLOUR_TABLE, _ADE_TABLE = "class_dict.csv", "objectInfo150.txt"
_PART_TABLE = "_classes.csv"  # Roboflow's, in the folder of each part, whose masks lie beside their images
TABLES = (LABEL_TABLE, COLOUR_TABLE, _ADE_TABLE)
_COLUMNS = ("name", "r", "g", "b")


class _Part(NamedTuple):
    images: Path
    masks: Path


@register_format
class MaskTree(DataFormat):
    """Two folders, of images and of masks."""

    name, title, tasks = "mask_tree", "folders of images and of masks", ("semantic",)
    expected, rank = "folders of images and masks (img_dir and ann_dir, images and annotations, images and masks)", 3

    def detect(self, path: Path) -> bool:
        return path.is_dir() and TRAIN in _parts(path)

    def read(self, path: Path, *, num_workers: int | None = None) -> OwnDataset:
        labels, voids = _table(path)
        function = partial(read_class_map, labels=labels, voids=voids)
        parts = {
            part: scan(function, _pairs(folders), description=f"masks of {part}", num_workers=num_workers)
            for part, folders in _parts(path).items()
        }
        ids = sorted({segment.class_id for images in parts.values() for image in images for segment in image.segments})
        names = {class_id: f"class_{class_id}" for class_id in ids} if labels is None else labels.names
        classes = [DataClass(class_id, name, is_thing=False) for class_id, name in names.items()]
        return OwnDataset(self.name, path, classes, parts, has_label_maps=True, void_ids=voids)

    def write(self, folder: Path, parts: Parts, classes: Sequence[DataClass]) -> None:
        if max(entry.id for entry in classes) >= VOID_ID:
            raise DatasetError(f"class id {VOID_ID} marks pixels of no class in masks")
        for part, samples in parts.items():
            name = _PART_NAMES[part][0]
            for sample in samples:
                write_image(folder / "img_dir" / name, sample)
                labels = np.where(sample.class_ids == BACKGROUND, VOID_ID, sample.class_ids).astype(np.uint8)
                write_picture(labels, (folder / "ann_dir" / name / sample.name).with_suffix(".png"))
        write_text_atomic("".join(f"{c.id}: {c.name}\n" for c in classes), folder / "classes.txt")


def _parts(root: Path) -> dict[str, _Part]:
    """The two folders of each part; flat ones are for training."""
    found: dict[str, _Part] = {}
    for part, names in _PART_NAMES.items():
        for images, masks in _PAIRS:
            places = [_Part(root / images.format(name), root / masks.format(name)) for name in names]
            whole = [place for place in places if place.images.is_dir() and _has_masks(place.masks)]
            if whole:
                found[part] = whole[0]
                break
    if TRAIN in found:
        return found
    together = {
        part: _Part(root / name, root / name)
        for part, names in _PART_NAMES.items()
        for name in names
        if (root / name / _PART_TABLE).is_file()
    }
    if TRAIN in together:
        return together
    flat = [_Part(root / images, root / masks) for images, masks in _FLAT]
    place = next((place for place in flat if place.images.is_dir() and _has_masks(place.masks)), None)
    return {} if place is None else {TRAIN: place}


def _has_masks(folder: Path) -> bool:
    return folder.is_dir() and any(path.suffix.lower() in MASK_SUFFIXES for path in folder.rglob("*"))


def _pairs(folders: _Part) -> list[MaskPair]:
    images = files_by_stem(folders.images, IMAGE_SUFFIXES)
    masks = files_by_stem(folders.masks, MASK_SUFFIXES)
    if folders.images == folders.masks:
        images = {stem: image for stem, image in images.items() if not stem.endswith(_MASK)}
        masks = {stem: mask for stem, mask in masks.items() if stem.endswith(_MASK)}
    bare: dict[str, Path] = {}
    for stem, mask in masks.items():
        name = stem if stem in images else _ENDING.sub("", stem)
        name = name if name in images else re.sub(r"_leftImg8bit$|_gtFine$", "", name)
        if name in bare:
            raise DatasetError(f"{bare[name]} and {mask}: which is the mask of {name}? Keep one")
        bare[name] = mask
    return [MaskPair(images[stem], bare[stem], None) for stem in check_pairs(images, bare, folders.masks)]


def _table(root: Path) -> tuple[Labels | None, frozenset[int]]:
    """Names and colours by the table beside the folders, and ids of no class."""
    voids = frozenset([VOID_ID])
    if (root / LABEL_TABLE).is_file():
        return read_label_table(root / LABEL_TABLE), voids
    if (root / COLOUR_TABLE).is_file():
        return _colour_table(root / COLOUR_TABLE), voids
    if (root / _ADE_TABLE).is_file():
        return _ade_table(root / _ADE_TABLE), voids | {0}  # ADE20K: 0 is what no class has
    tables = [root / name / _PART_TABLE for name in _PART_NAMES[TRAIN]]
    table = next((table for table in tables if table.is_file()), None)
    return (None if table is None else _numbered_table(table)), voids


def _numbered_table(file: Path) -> Labels:
    """Roboflow's table: an id and a name in each line."""
    try:
        return Labels({int(number): name for number, name in _rows(file, ",")[1:]}, {})
    except ValueError as error:
        raise DatasetError(f"{file}: expected the columns Pixel Value and Class: {error}") from error


def _rows(file: Path, delimiter: str) -> list[list[str]]:
    try:
        text = read_file(file).decode("utf-8-sig")
        rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text), delimiter=delimiter)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{file}: not a valid table: {error}") from error
    return [row for row in rows if any(row)]


def _colour_table(file: Path) -> Labels:
    """Classes in the order of the lines."""
    labels, faults = Labels({}, {}), Faults(file)
    head, *rows = _rows(file, ",") or [[]]
    if tuple(cell.lower() for cell in head) != _COLUMNS:
        raise DatasetError(f"{file}: expected the columns {', '.join(_COLUMNS)}, found {', '.join(head)}")
    for number, row in enumerate(rows):
        try:
            name, (red, green, blue) = row[0], map(int, row[1:])
        except ValueError:
            fault = f"line {number + 2}: expected a name and three whole numbers, found {','.join(row)}"
            faults.add(fault, is_lasting=True)
            continue
        if (red, green, blue) in labels.ids:
            fault = f"line {number + 2}: the colour is that of {labels.names[labels.ids[red, green, blue]]!r}"
            faults.add(fault, is_lasting=True)
        labels.names[number], labels.ids[red, green, blue] = name, number
    faults.refuse()
    return labels


def _ade_table(file: Path) -> Labels:
    """ADE20K's table: the index first, the names last, of which the first is meant."""
    rows = _rows(file, "\t")[1:]
    try:
        return Labels({int(row[0]): row[-1].split(",")[0].strip() for row in rows}, {})
    except (ValueError, IndexError) as error:
        raise DatasetError(f"{file}: expected the columns Idx, Ratio, Train, Val, Stuff and Name: {error}") from error
