"""Supervisely projects: ``meta.json``, and for each data set ``DATASET/img/a.jpg`` with ``DATASET/ann/a.jpg.json``.

The layout is that of the SDK 6.73. Bitmaps are PNG files, packed by zlib, in base64, placed by their origin; polygons
have an exterior and interiors. Data sets called train and val are the parts; those of other names are for training.
"""

from __future__ import annotations

import base64
import binascii
import io
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mask2former.data.own_data.coco import part_of
from mask2former.data.own_data.dataset import TRAIN, VALID, DataClass, OwnDataset
from mask2former.data.own_data.formats import DataFormat, Parts, register_format
from mask2former.data.own_data.labelled import (
    LabelledImage,
    Objects,
    labelled_dataset,
    outline_without_holes,
    paste_mask,
    stated_size,
)
from mask2former.data.own_data.samples import Region, write_image
from mask2former.data.own_data.scanning import scan
from mask2former.errors import DatasetError
from mask2former.files.annotation_values import plain_size
from mask2former.files.atomic import write_json
from mask2former.files.faults import Faults
from mask2former.files.json_files import read_json, read_json_if_whole, require_lists
from mask2former.files.pictures import encode_picture
from mask2former.structures import mask_to_box_xywh
from mask2former.structures.segmentations import MAX_PIXELS, shown

_MAX_PACKED_BYTES = 1 << 28


@register_format
class Supervisely(DataFormat):
    """Bitmaps and polygons in a JSON file for each image."""

    name, title, tasks = "supervisely", "a Supervisely project", ("instance",)
    expected, rank = "a Supervisely project with meta.json", 1

    def detect(self, path: Path) -> bool:
        return path.is_dir() and _is_meta(read_json_if_whole(path / "meta.json")) and bool(_datasets(path))

    def read(self, path: Path, *, num_workers: int | None = None) -> OwnDataset:
        meta = require_lists(read_json(path / "meta.json"), ("classes",), path / "meta.json")
        titles = [str(entry.get("title")) for entry in meta["classes"] if isinstance(entry, dict)]
        read: dict[str, list[LabelledImage]] = {}
        for folder in _datasets(path):
            files = sorted((folder / "ann").glob("*.json"))
            function = partial(_read_file, titles=frozenset(titles))
            images = scan(function, files, description=f"annotations of {folder.name}", num_workers=num_workers)
            read.setdefault(_part(folder, path), []).extend(images)
        return labelled_dataset(self.name, path, read, labels=dict(enumerate(titles)))

    def write(self, folder: Path, parts: Parts, classes: Sequence[DataClass]) -> None:
        names = {entry.id: entry.name for entry in classes}
        for part, samples in parts.items():
            dataset = folder / {TRAIN: "train", VALID: "val"}[part]
            for sample in samples:
                write_image(dataset / "img", sample)
                objects = [_object(region, names[region.class_id]) for region in sample.regions()]
                size = {"height": sample.size[0], "width": sample.size[1]}
                content = {"description": "", "tags": [], "size": size, "objects": objects}
                write_json(content, dataset / "ann" / f"{sample.name}.json")
        entries = [
            {"title": name, "shape": "any", "color": "#FF0000", "geometry_config": {}} for name in names.values()
        ]
        write_json({"classes": entries, "tags": [], "projectType": "images"}, folder / "meta.json")


def _is_meta(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("classes"), list)


def _datasets(path: Path) -> list[Path]:
    return sorted(folder.parent for folder in path.rglob("ann") if (folder.parent / "img").is_dir())


def _part(folder: Path, root: Path) -> str:
    return VALID if part_of(folder, root) == VALID else TRAIN


def _read_file(json_file: Path, *, titles: frozenset[str]) -> LabelledImage:
    content = require_lists(read_json(json_file), ("objects",), json_file)
    image = json_file.parent.parent / "img" / json_file.name.removesuffix(".json")
    if not image.is_file():
        raise DatasetError(f"{json_file}: image not found: {image}")
    faults = Faults(json_file)
    try:
        size = stated_size(image, plain_size(content.get("size") or {}))
    except DatasetError as error:
        raise DatasetError(f"{json_file}: {error}") from error
    objects = Objects(faults, size)
    for number, entry in enumerate(content["objects"]):
        with objects.entry(f"object {number}"):
            if entry["classTitle"] not in titles:
                raise DatasetError(f"class {shown(entry['classTitle'])} is not in meta.json")
            _add_object(entry, objects)
    faults.refuse()
    return objects.image(json_file, image)


def _add_object(entry: Any, objects: Objects) -> None:
    kind = entry["geometryType"]
    if kind == "bitmap":
        objects.add(entry["classTitle"], _bitmap(entry["bitmap"], objects))
    elif kind == "polygon":
        points = entry["points"]
        exterior, *holes = [
            [float(v) for x_y in ring for v in x_y] for ring in (points["exterior"], *points["interior"])
        ]
        objects.add(entry["classTitle"], outline_without_holes([exterior], holes, objects.size))
    else:
        objects.leave_out(f"a {kind} has no mask")


def _bitmap(entry: Any, objects: Objects) -> np.ndarray:
    left, top = (int(value) for value in entry["origin"])
    try:
        unpacker = zlib.decompressobj()
        packed = unpacker.decompress(base64.b64decode(entry["data"]), _MAX_PACKED_BYTES)
        with Image.open(io.BytesIO(packed)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise DatasetError(f"a bitmap of {picture.width} x {picture.height} pixels is too large")
            channel = picture.getchannel("A") if "A" in picture.getbands() else picture.convert("L")
            crop = np.asarray(channel) > 0
    except DatasetError:
        raise
    except (TypeError, binascii.Error, zlib.error, OSError, ValueError, SyntaxError) as error:
        raise DatasetError(f"'data' must be a PNG picture, packed by zlib, in base64: {error}") from error
    mask, is_whole = paste_mask(crop, (left, top), objects.size)
    if not is_whole:
        objects.changed["clipped", "a mask reaches over the edge of its image"] += 1
    return mask


def _object(region: Region, title: str) -> dict[str, Any]:
    x, y, width, height = mask_to_box_xywh(region.mask)
    crop = region.mask[y : y + height, x : x + width].astype(np.uint8) * 255
    data = base64.b64encode(zlib.compress(encode_picture(crop))).decode()
    return {"classTitle": title, "geometryType": "bitmap", "tags": [], "bitmap": {"data": data, "origin": [x, y]}}
