"""Label Studio's JSON: a list of tasks with polygons and brush masks; images in the same folder or below it.

The layout is that of Label Studio 1.13, export "JSON". Coordinates are percents. A brush mask is a stream of bits
(@thi.ng/rle-pack) that holds red, green, blue and alpha of every pixel; the alpha is the mask.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

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
    stated_size,
)
from mask2former.data.own_data.samples import Region, Sample, write_image
from mask2former.errors import DatasetError
from mask2former.files.annotation_values import plain_size
from mask2former.files.atomic import write_json
from mask2former.files.faults import Faults
from mask2former.files.json_files import read_json, read_json_if_whole
from mask2former.structures.segmentations import shown

_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # before the name of an uploaded file
_CHANNELS = 4
_LENGTH_BITS = (4, 8, 12, 16)  # of runs; four bits say each, less one
_WORD_BITS = 8


@register_format
class LabelStudio(DataFormat):
    """Tasks with the results of their annotations."""

    name, title, tasks = "label_studio", "a Label Studio export", ("instance",)
    expected, rank = "Label Studio's JSON or its folder", 3  # after COCO, whose files may be large

    def detect(self, path: Path) -> bool:
        return bool(_json_files(path))

    def read(self, path: Path, *, num_workers: int | None = None) -> OwnDataset:
        read = {part: _read_file(file) for part, file in _json_files(path).items()}
        return labelled_dataset(self.name, path.parent if path.is_file() else path, read)

    def write(self, folder: Path, parts: Parts, classes: Sequence[DataClass]) -> None:
        names = {entry.id: entry.name for entry in classes}
        for part, samples in parts.items():
            place, tasks = folder / {TRAIN: "train", VALID: "valid"}[part], []
            for number, sample in enumerate(samples, start=1):
                write_image(place / "images", sample)
                tasks.append(_task(number, sample, names))
            write_json(tasks, place / "tasks.json")


def _json_files(path: Path) -> dict[str, Path]:
    return part_files(path, ".json", lambda file: is_label_studio(read_json_if_whole(file)))


def is_label_studio(content: Any) -> bool:
    """Whether a JSON file is an export of tasks."""
    first = content[0] if isinstance(content, list) and content else None
    return isinstance(first, dict) and isinstance(first.get("data"), dict) and ("annotations" in first)


def _read_file(json_file: Path) -> list[LabelledImage]:
    finder, faults, images = ImageFinder(json_file.parent), Faults(json_file), []
    for number, task in enumerate(read_json(json_file)):
        where = f"task {task.get('id', number) if isinstance(task, dict) else number}"
        with entry_of(faults, where):
            results = [result for annotation in _counted(task) for result in annotation["result"]]
            file = _image_of(task, finder)
            stated = next((r for r in results if "original_width" in r), None)
            objects = Objects(faults, _size(file, stated))
            for place, result in enumerate(results):
                with objects.entry(f"{where}, result {result.get('id', place)}"):
                    _add_result(result, objects)
            images.append(objects.image(json_file, file))
    faults.refuse()
    return images


def _counted(task: Any) -> Iterator[Any]:
    """The annotations of a task that were not skipped; there must be one at most."""
    kept = [annotation for annotation in task["annotations"] if not annotation.get("was_cancelled")]
    if len(kept) > 1:
        raise DatasetError(f"{len(kept)} annotations of one image, expected one: which of them holds?")
    yield from kept


def _image_of(task: Any, finder: ImageFinder) -> Path:
    texts = [value for key, value in task["data"].items() if isinstance(value, str)]
    name = task["data"].get("image") or (texts[0] if texts else None)
    if not isinstance(name, str):
        raise DatasetError(f"'data' names no image, found {shown(task['data'])}")
    name = unquote(name).replace("\\", "/").split("?d=")[-1]
    bare = name.rpartition("/")[2]
    return finder.find(name, other_names=[_UPLOADED.sub("", bare)])


def _size(file: Path, result: Any) -> tuple[int, int]:
    if result is None:
        return stated_size(file, None)
    return stated_size(file, plain_size({"height": result["original_height"], "width": result["original_width"]}))


def _add_result(result: Any, objects: Objects) -> None:
    kind, value = result["type"], result["value"]
    if kind in ("polygonlabels", "brushlabels") and len(value[kind]) != 1:
        raise DatasetError(f"expected one label, found {shown(value[kind])}")
    height, width = objects.size
    if kind == "polygonlabels":
        points = [number for x, y in value["points"] for number in (float(x) * width / 100, float(y) * height / 100)]
        objects.add(str(value[kind][0]), [points])
    elif kind == "brushlabels":
        objects.add(str(value[kind][0]), decode_brush(value["rle"], objects.size))
    elif "labels" in kind:
        objects.leave_out(f"{kind} have no mask")


def decode_brush(rle: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Mask (H, W) bool of a brush: where the alpha is not 0.

    Raises:
        DatasetError: the code is cut off, or of an image of another size.
    """
    expected = size[0] * size[1] * _CHANNELS
    try:
        bits = np.unpackbits(np.asarray(rle, dtype=np.int64).astype(np.uint8, casting="unsafe"))
        reader = _Bits(bits)
        total, word, lengths = reader.take(32), reader.take(5) + 1, [reader.take(4) + 1 for _ in range(4)]
        if total != expected:
            raise DatasetError(f"brush of {total} values, expected {size[0]} x {size[1]} x {_CHANNELS} = {expected}")
        values, at = np.zeros(total, dtype=np.uint8), 0
        while at < total:
            is_run = reader.take(1)
            end = at + 1 + reader.take(lengths[reader.take(2)])
            if end > total:
                raise DatasetError(f"brush holds a run beyond its {total} values")
            if is_run:
                values[at:end] = reader.take(word) != 0
            else:
                for place in range(at, end):
                    values[place] = reader.take(word) != 0
            at = end
    except (IndexError, ValueError, TypeError, OverflowError) as error:
        raise DatasetError(f"brush 'rle' cannot be decoded: {error}") from error
    return values.reshape(*size, _CHANNELS)[..., -1].astype(bool)


class _Bits:
    """Numbers taken one after the other from bits (N,) uint8, the highest first."""

    def __init__(self, bits: np.ndarray) -> None:
        self.text, self.at = (bits + ord("0")).tobytes().decode("ascii"), 0

    def take(self, count: int) -> int:
        """The number of the next ``count`` bits.

        Raises:
            IndexError: there are fewer.
        """
        begin, self.at = self.at, self.at + count
        if self.at > len(self.text):
            raise IndexError("it is cut off")
        return int(self.text[begin : self.at], 2)


def encode_brush(mask: np.ndarray) -> list[int]:
    """The code of a mask (H, W) bool, as bytes."""
    values = mask.reshape(-1)
    bits = [f"{values.size * _CHANNELS:032b}", f"{_WORD_BITS - 1:05b}", *(f"{n - 1:04b}" for n in _LENGTH_BITS)]
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), values.size]
    for begin, end in pairwise(edges):
        left = (end - begin) * _CHANNELS
        while left:
            length = min(left, 1 << _LENGTH_BITS[-1])
            place = next(i for i, width in enumerate(_LENGTH_BITS) if length <= 1 << width)
            bits.append(f"1{place:02b}{length - 1:0{_LENGTH_BITS[place]}b}{255 * int(values[begin]):08b}")
            left -= length
    stream = "".join(bits)
    stream += "0" * (-len(stream) % 8)
    return [int(stream[i : i + 8], 2) for i in range(0, len(stream), 8)]


def _task(number: int, sample: Sample, names: dict[int, str]) -> dict[str, Any]:
    results = [_result(region, names[region.class_id], sample.size) for region in sample.regions()]
    return {"id": number, "data": {"image": sample.name}, "annotations": [{"id": number, "result": results}]}


def _result(region: Region, label: str, size: tuple[int, int]) -> dict[str, Any]:
    return {
        "id": f"{region.class_id}_{region.instance_id}",
        "type": "brushlabels",
        "from_name": "tag",
        "to_name": "image",
        "original_width": size[1],
        "original_height": size[0],
        "image_rotation": 0,
        "value": {"format": "rle", "rle": encode_brush(region.mask), "brushlabels": [label]},
    }
