"""CVAT for images 1.1: ``annotations.xml`` with polygons and run-length masks; images in ``images/`` or beside it.

The layout is that of CVAT 2.20. A mask is a box with the lengths of its runs, row by row, the first one outside.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from mask2former.data.own_data.dataset import TRAIN, VALID, DataClass, OwnDataset
from mask2former.data.own_data.formats import DataFormat, Parts, register_format
from mask2former.data.own_data.labelled import (
    ImageFinder,
    LabelledImage,
    Objects,
    entry_of,
    labelled_dataset,
    part_files,
    paste_mask,
    stated_size,
)
from mask2former.data.own_data.samples import Region, Sample, write_image
from mask2former.errors import DatasetError
from mask2former.files.annotation_values import plain_size
from mask2former.files.atomic import write_bytes_atomic
from mask2former.files.faults import Faults
from mask2former.files.inputs import read_file
from mask2former.structures import mask_to_box_xywh
from mask2former.structures.segmentations import MAX_PIXELS, shown

_FILE = "annotations.xml"
_DECLARATION = re.compile(rb"<!(DOCTYPE|ENTITY)", re.IGNORECASE)
_HEAD = 1 << 12
_NO_SHAPES = ("tag", "attribute")


@register_format
class CvatImages(DataFormat):
    """One XML file for all images."""

    name, title, tasks = "cvat", "CVAT for images", ("instance",)
    expected, rank = f"CVAT's {_FILE} or its folder", 1

    def detect(self, path: Path) -> bool:
        return bool(_xml_files(path))

    def read(self, path: Path, *, num_workers: int | None = None) -> OwnDataset:
        read, names = {}, set()
        for part, xml_file in _xml_files(path).items():
            read[part], found = _read_file(xml_file)
            names |= found
        root = path.parent if path.is_file() else path
        return labelled_dataset(self.name, root, read, labels=dict(enumerate(sorted(names))))

    def write(self, folder: Path, parts: Parts, classes: Sequence[DataClass]) -> None:
        names = {entry.id: entry.name for entry in classes}
        for part, samples in parts.items():
            root = ElementTree.Element("annotations")
            ElementTree.SubElement(root, "version").text = "1.1"
            meta = ElementTree.SubElement(root, "meta")
            labels = ElementTree.SubElement(ElementTree.SubElement(meta, "job"), "labels")
            for name in names.values():
                ElementTree.SubElement(ElementTree.SubElement(labels, "label"), "name").text = name
            place = folder / {TRAIN: "train", VALID: "valid"}[part]
            for number, sample in enumerate(samples):
                write_image(place / "images", sample)
                _add_image(root, number, sample, names)
            ElementTree.indent(root)
            content = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
            write_bytes_atomic(content, place / _FILE)


def _xml_files(path: Path) -> dict[str, Path]:
    return part_files(path, ".xml", _is_cvat)


def _is_cvat(xml_file: Path) -> bool:
    return b"<annotations" in read_file(xml_file)[:_HEAD]


def parse_xml(xml_file: Path) -> ElementTree.Element:
    """The root of an XML file.

    Raises:
        DatasetError: it is no XML, or declares entities, which could unfold without end.
    """
    content = read_file(xml_file)
    if _DECLARATION.search(content):
        raise DatasetError(f"{xml_file}: declares a document type or entities, which annotations do not need")
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError) as error:
        raise DatasetError(f"{xml_file}: not a valid XML file: {error}") from error


def _read_file(xml_file: Path) -> tuple[list[LabelledImage], set[str]]:
    root = parse_xml(xml_file)
    if root.find("track") is not None:
        raise DatasetError(f"{xml_file}: looks like CVAT for video (tracks); export the task as CVAT for images 1.1")
    names = {label.findtext("name", "") for label in root.iter("label")} - {""}
    finder, faults, images = ImageFinder(xml_file.parent), Faults(xml_file), []
    for entry in root.iter("image"):
        where = f"image {entry.get('name')}"
        with entry_of(faults, where):
            file = finder.find(entry.get("name"))
            objects = Objects(faults, stated_size(file, plain_size(entry.attrib)))
            for number, shape in enumerate(entry):
                with objects.entry(f"{where}, {shape.tag} {number}"):
                    _add_shape(shape, objects, names)
            images.append(objects.image(xml_file, file))
    faults.refuse()
    return images, names or {label for image in images for label, _ in image.objects}


def _add_shape(shape: ElementTree.Element, objects: Objects, names: set[str]) -> None:
    if shape.tag in _NO_SHAPES:
        return
    if names and shape.get("label") not in names:
        raise DatasetError(f"label {shown(shape.get('label'))} is none of the task's: {sorted(names)[:20]}")
    label = shape.attrib["label"]
    if shape.tag == "polygon":
        points = shape.attrib["points"].split(";")
        objects.add(label, [[float(value) for point in points for value in point.split(",")]])
    elif shape.tag == "mask":
        objects.add(label, _mask(shape, objects.size))
    else:
        objects.leave_out(f"a {shape.tag} has no mask")


def _mask(shape: ElementTree.Element, size: tuple[int, int]) -> np.ndarray:
    left, top, width, height = (int(shape.attrib[key]) for key in ("left", "top", "width", "height"))
    runs = np.array([int(run) for run in shape.attrib["rle"].split(",")], dtype=np.int64)
    if min(width, height) < 1 or width * height > MAX_PIXELS or (runs < 0).any() or runs.sum() != width * height:
        raise DatasetError(f"the runs of rle sum to {runs.sum()}, expected width x height = {width} x {height}")
    crop = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    return paste_mask(crop, (left, top), size)[0]


def _add_image(root: ElementTree.Element, number: int, sample: Sample, names: dict[int, str]) -> None:
    height, width = sample.size
    attributes = {"id": str(number), "name": sample.name, "width": str(width), "height": str(height)}
    image = ElementTree.SubElement(root, "image", attributes)
    for region in sample.regions():
        ElementTree.SubElement(image, "mask", _mask_attributes(region, names[region.class_id]))


def _mask_attributes(region: Region, label: str) -> dict[str, str]:
    x, y, width, height = mask_to_box_xywh(region.mask)
    inside = region.mask[y : y + height, x : x + width].reshape(-1)
    ends = np.flatnonzero(np.diff(inside, prepend=False, append=~inside[-1:]))
    runs = np.diff(ends, prepend=0).tolist()
    box = {"left": x, "top": y, "width": width, "height": height}
    common = {"label": label, "source": "manual", "occluded": "0", "z_order": "0"}
    return {**common, "rle": ", ".join(map(str, runs)), **{key: str(value) for key, value in box.items()}}
