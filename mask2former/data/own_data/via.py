"""VGG Image Annotator 2: one JSON or CSV file of regions; images beside it or below.

The layouts are those of VIA 2.0.12: an export of annotations, a project (``_via_img_metadata``), and the CSV. Polygons,
rectangles, circles and ellipses are regions; the class is the one region attribute that all of them have.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mask2former.data.own_data.dataset import TRAIN, VALID, DataClass, OwnDataset
from mask2former.data.own_data.formats import DataFormat, Parts, register_format
from mask2former.data.own_data.labelled import (
    ImageFinder,
    LabelledImage,
    Objects,
    entry_of,
    labelled_dataset,
    part_files,
    stated_size,
)
from mask2former.data.own_data.samples import Sample, write_image
from mask2former.errors import DatasetError
from mask2former.files.atomic import write_json
from mask2former.files.faults import Faults
from mask2former.files.inputs import read_file
from mask2former.files.json_files import read_json, read_json_if_whole
from mask2former.structures.masks import mask_to_rings, rings_to_polygon
from mask2former.structures.segmentations import shown

_HEADER = "region_shape_attributes"
_HEAD = 1 << 10
_ONLY_CLASS = "object"  # of regions without attributes
_NUM_CURVE_POINTS = 64
_WRITTEN_ATTRIBUTE = "class"
_WITHOUT_AREA = ("point", "polyline", "line")


@register_format
class Via(DataFormat):
    """Regions in one file."""

    name, title, tasks = "via", "a VGG Image Annotator file", ("instance",)
    expected, rank = "VIA's JSON or CSV or its folder", 3  # after COCO, whose files may be large

    def detect(self, path: Path) -> bool:
        return bool(_files(path))

    def read(self, path: Path, *, num_workers: int | None = None) -> OwnDataset:
        read = {part: _read_file(file) for part, file in _files(path).items()}
        return labelled_dataset(self.name, path.parent if path.is_file() else path, read)

    def write(self, folder: Path, parts: Parts, classes: Sequence[DataClass]) -> None:
        names = {entry.id: entry.name for entry in classes}
        for part, samples in parts.items():
            place, content = folder / {TRAIN: "train", VALID: "valid"}[part], {}
            for sample in samples:
                write_image(place, sample)
                content[f"{sample.name}{len(sample.image)}"] = _entry(sample, names)
            write_json(content, place / "via_region_data.json")


def _files(path: Path) -> dict[str, Path]:
    return part_files(path, ".json", lambda file: is_via(read_json_if_whole(file))) or part_files(path, ".csv", _is_csv)


def is_via(content: Any) -> bool:
    """Whether a JSON file is an export or a project of the annotator."""
    if not isinstance(content, dict) or not content:
        return False
    if "_via_img_metadata" in content:
        return True
    first = next(iter(content.values()))
    return isinstance(first, dict) and "filename" in first and "regions" in first


def _is_csv(file: Path) -> bool:
    return _HEADER.encode() in read_file(file)[:_HEAD]


def _read_file(file: Path) -> list[LabelledImage]:
    finder, faults, images = ImageFinder(file.parent), Faults(file), []
    entries = list(_csv_entries(file, faults) if file.suffix.lower() == ".csv" else _json_entries(file))
    attribute = _class_attribute([region for _, regions in entries for region in regions], file)
    for name, regions in entries:
        with entry_of(faults, f"image {shown(name)}"):
            image = finder.find(name)
            objects = Objects(faults, stated_size(image, None))
            for number, region in enumerate(regions):
                with objects.entry(f"image {name}, region {number}"):
                    _add_region(region, objects, attribute)
            images.append(objects.image(file, image))
    faults.refuse()
    return images


def _json_entries(file: Path) -> Iterator[tuple[Any, list[Any]]]:
    content = read_json(file)
    for entry in content.get("_via_img_metadata", content).values():
        regions = entry.get("regions") if isinstance(entry, dict) else None
        if not isinstance(regions, (list, dict)):
            raise DatasetError(f"{file}: expected images with 'filename' and 'regions', found {shown(entry)}")
        yield entry.get("filename"), list(regions.values() if isinstance(regions, dict) else regions)


def _csv_entries(file: Path, faults: Faults) -> Iterator[tuple[Any, list[Any]]]:
    """The regions of each image; a line without a shape is an image without regions."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_file(file).decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{file}: not a valid CSV file: {error}") from error
    found: dict[Any, list[Any]] = {}
    for number, row in enumerate(rows, start=2):
        with entry_of(faults, f"line {number}"):
            regions = found.setdefault(row.get("filename") or row.get("#filename"), [])
            shape = json.loads(row[_HEADER])
            if shape:
                labels = json.loads(row["region_attributes"])
                regions.append({"shape_attributes": shape, "region_attributes": labels})
    yield from found.items()


def _class_attribute(regions: Sequence[Any], file: Path) -> str | None:
    """The region attribute that says the class; None where regions have none at all.

    Raises:
        DatasetError: it could be one of several.
    """
    counts: Counter[str] = Counter()
    for region in regions:
        labels = region.get("region_attributes") if isinstance(region, dict) else None
        counts.update(list(labels) if isinstance(labels, dict) else ())
    if not counts:
        return None
    common = [name for name, count in counts.items() if count == max(counts.values())]
    if len(common) > 1:
        raise DatasetError(f"{file}: which region attribute is the class: {', '.join(sorted(common))}? Keep one")
    return common[0]


def _add_region(region: Any, objects: Objects, attribute: str | None) -> None:
    shape = region["shape_attributes"]
    kind = shape["name"]
    if kind in _WITHOUT_AREA:
        objects.leave_out(f"a {kind} has no area")
        return
    label = _ONLY_CLASS if attribute is None else region["region_attributes"][attribute]
    if isinstance(label, dict) and len(label) == 1:  # a check box
        label = next(iter(label))
    if not isinstance(label, str) or not label.strip():
        raise DatasetError(f"region attribute {attribute!r} must name a class, found {shown(label)}")
    objects.add(label.strip(), [_outline(kind, shape)])


def _outline(kind: str, shape: Any) -> list[float]:
    if kind == "polygon":
        points = zip(shape["all_points_x"], shape["all_points_y"], strict=True)
        return [float(value) for point in points for value in point]
    if kind == "rect":
        left, top, width, height = (float(shape[key]) for key in ("x", "y", "width", "height"))
        return [left, top, left + width, top, left + width, top + height, left, top + height]
    if kind in ("circle", "ellipse"):
        radii = [shape["r"]] * 2 if kind == "circle" else [shape["rx"], shape["ry"]]
        x, y, rx, ry, turn = (float(v) for v in (shape["cx"], shape["cy"], *radii, shape.get("theta", 0)))
        angles = [2 * math.pi * i / _NUM_CURVE_POINTS for i in range(_NUM_CURVE_POINTS)]
        around = [(rx * math.cos(a), ry * math.sin(a)) for a in angles]
        cos, sin = math.cos(turn), math.sin(turn)
        return [value for u, v in around for value in (x + u * cos - v * sin, y + u * sin + v * cos)]
    raise DatasetError(f"shape must be polygon, rect, circle or ellipse, found {shown(kind)}")


def _entry(sample: Sample, names: dict[int, str]) -> dict[str, Any]:
    regions = []
    for region in sample.regions():
        points = rings_to_polygon(mask_to_rings(region.mask))
        shape = {"name": "polygon", "all_points_x": [x for x, _ in points], "all_points_y": [y for _, y in points]}
        labels = {_WRITTEN_ATTRIBUTE: names[region.class_id]}
        regions.append({"shape_attributes": shape, "region_attributes": labels})
    return {"filename": sample.name, "size": len(sample.image), "regions": regions, "file_attributes": {}}
