"""YOLO segmentation: ``data.yaml``, and beside ``images/`` a folder ``labels/`` with a line for each object.

The layouts are those of ultralytics 8.3 (``images/train``, ``labels/train``; parts as folders, lists of folders or text
files of paths) and of Roboflow (``train/images``, ``train/labels``, ``valid/…``). A line is the class and the outline,
x and y as shares of width and height. Holes and further parts are joined to one outline by ways gone there and back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from mask2former.data.own_data.dataset import TRAIN, VALID, DataClass, OwnDataset
from mask2former.data.own_data.formats import DataFormat, Parts, register_format
from mask2former.data.own_data.labelled import LabelledImage, Objects, labelled_dataset
from mask2former.data.own_data.samples import write_image
from mask2former.data.own_data.scanning import IMAGE_SUFFIXES, scan
from mask2former.errors import DatasetError
from mask2former.files.atomic import write_text_atomic
from mask2former.files.faults import Faults
from mask2former.files.images import read_image_size
from mask2former.files.inputs import read_file
from mask2former.structures.masks import mask_to_rings, rings_to_polygon
from mask2former.structures.segmentations import shown

_SUFFIXES = (".yaml", ".yml")
_PART_KEYS = {TRAIN: ("train",), VALID: ("val", "valid", "validation")}
_WRITTEN_PARTS = {TRAIN: "train", VALID: "val"}
_BOX_NUMBERS = 5  # class, centre and sides
_LEAST_NUMBERS = 7  # class and three points
_TOLERANCE = 0.01  # ultralytics takes as much beyond the edge
_SOME_BOXES = "is a box (class and 4 numbers), which has no mask"


@register_format
class Yolo(DataFormat):
    """Outlines in text files."""

    name, title, tasks = "yolo", "YOLO segmentation", ("instance",)
    expected, rank = "a YOLO data.yaml or its folder", 1

    def detect(self, path: Path) -> bool:
        return _config_file(path) is not None

    def read(self, path: Path, *, num_workers: int | None = None) -> OwnDataset:
        config_file = _config_file(path)
        assert config_file is not None
        return read_yolo(config_file, num_workers=num_workers)

    def write(self, folder: Path, parts: Parts, classes: Sequence[DataClass]) -> None:
        places = {entry.id: place for place, entry in enumerate(classes)}
        config: dict[str, Any] = {"path": "."}
        for part, samples in parts.items():
            name = _WRITTEN_PARTS[part]
            config[name] = f"images/{name}"
            for sample in samples:
                write_image(folder / "images" / name, sample)
                height, width = sample.size
                lines = []
                for region in sample.regions():
                    points = rings_to_polygon(mask_to_rings(region.mask))
                    numbers = [f"{x / width:.7g} {y / height:.7g}" for x, y in points]
                    lines.append(" ".join([str(places[region.class_id]), *numbers]) + "\n")
                write_text_atomic("".join(lines), (folder / "labels" / name / sample.name).with_suffix(".txt"))
        config["names"] = {place: entry.name for place, entry in enumerate(classes)}
        write_text_atomic(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), folder / "data.yaml")


def read_yolo(config_file: Path, *, num_workers: int | None = None) -> OwnDataset:
    """Return every image with one segment for each line of its label file; images without a file have no object.

    Raises:
        DatasetError: a part or its folders are missing, or label files are wrong; all of them are named.
    """
    config, root = _read_config(config_file), config_file.parent
    names = _names(config, config_file)
    read: dict[str, list[LabelledImage]] = {}
    notes = []
    for part, keys in _PART_KEYS.items():
        stated = next((config[key] for key in keys if config.get(key)), None)
        if stated is None and part == TRAIN:
            raise DatasetError(f"{config_file}: no 'train'; expected the folder or list of the training images")
        if stated is None:
            continue
        images = list(_images(stated, config, config_file))
        if not images:
            raise DatasetError(f"{config_file}: {keys[0]}: no image found in {shown(stated)}")
        labels = [_label_file(image) for image in images]
        _refuse_detection(labels, config_file)
        without = sum(not label.is_file() for label in labels)
        if without == len(images):
            raise DatasetError(f"{config_file}: none of the {without} {part} images has a label file ({labels[0]})")
        if without:
            notes.append(f"{without} of {len(images)} {part} images have no label file: taken to hold no object")
        pairs = list(zip(images, labels, strict=True))
        description = f"YOLO labels of {part}"
        read[part] = scan(partial(_read_pair, names=names), pairs, description=description, num_workers=num_workers)
    return labelled_dataset(Yolo.name, root, read, labels=names, notes=notes)


def _config_file(path: Path) -> Path | None:
    if path.is_file():
        candidates = [path] if path.suffix.lower() in _SUFFIXES else []
    else:
        candidates = sorted(file for suffix in _SUFFIXES for file in path.glob(f"*{suffix}"))
    for file in candidates:
        config = yaml_mapping(file)
        if "names" in config and ("train" in config or "val" in config):
            return file
    return None


def yaml_mapping(file: Path) -> dict[Any, Any]:
    """Return the mapping that a YAML file holds; empty where it holds something else.

    Raises:
        DatasetError: the file is no YAML.
    """
    try:
        content = yaml.safe_load(read_file(file).decode("utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise DatasetError(f"{file}: not a valid YAML file: {str(error)[:200]}") from error
    return content if isinstance(content, dict) else {}


def _read_config(config_file: Path) -> dict[Any, Any]:
    config = yaml_mapping(config_file)
    kinds = config.get("kpt_shape")
    if kinds:
        raise DatasetError(f"{config_file}: looks like YOLO pose (kpt_shape {shown(kinds)}): key points have no masks")
    return config


def _names(config: Mapping[Any, Any], config_file: Path) -> dict[int, str]:
    names = config["names"]
    entries = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(entries, dict) or not entries:
        raise DatasetError(f"{config_file}: 'names' must be a list of classes, or ID: NAME, found {shown(names)}")
    if not all(isinstance(key, int) and key >= 0 for key in entries):
        raise DatasetError(f"{config_file}: the ids in 'names' must be whole numbers, found {shown(list(entries))}")
    texts = [str(name) for name in entries.values()]
    twice = sorted({name for name in texts if texts.count(name) > 1})
    if twice:
        raise DatasetError(f"{config_file}: 'names' has {twice} twice")
    if isinstance(config.get("nc"), int) and config["nc"] != len(entries):
        raise DatasetError(f"{config_file}: 'nc' is {config['nc']}, 'names' has {len(entries)} classes")
    return dict(sorted(zip(entries, texts)))


def _images(stated: Any, config: Mapping[Any, Any], config_file: Path) -> Iterator[Path]:
    """Yield the images of a part: of folders and of text files that list them."""
    for entry in stated if isinstance(stated, list) else [stated]:
        place = _located(entry, config, config_file)
        if place.is_dir():
            yield from sorted(p for p in place.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            continue
        if place.suffix.lower() in IMAGE_SUFFIXES:
            yield place
            continue
        try:
            lines = read_file(place).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DatasetError(f"{place}: expected a text file of image paths") from error
        for line in filter(None, map(str.strip, lines)):
            beside = place.parent / line.removeprefix("./")
            yield beside if line.startswith("./") or beside.is_file() else _located(line, config, config_file)


def _located(entry: Any, config: Mapping[Any, Any], config_file: Path) -> Path:
    """Return where a path of the configuration leads.

    Below ``path``, beside the file, or there without a leading ``../``.
    """
    if not isinstance(entry, str):
        raise DatasetError(f"{config_file}: expected the path of a folder or file, found {shown(entry)}")
    name, root = entry.replace("\\", "/"), config_file.parent
    stated = config.get("path")
    bases = [root / stated] if isinstance(stated, str) else []
    bare = name.removeprefix("../").removeprefix("./")  # Roboflow writes ../train/images for train/images
    tried = [base / part for base in [*bases, root] for part in (name, bare)]
    found = next((place for place in tried if place.exists()), None)
    if found is None:
        shown_places = ", ".join(dict.fromkeys(map(str, tried)))
        raise DatasetError(f"{config_file}: {entry} not found; looked for {shown_places}")
    return found


def _label_file(image: Path) -> Path:
    """Return the label file of an image: in ``labels`` instead of the last folder ``images``, or beside it."""
    parts = list(image.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _refuse_detection(labels: Sequence[Path], config_file: Path, *, num_looked_at: int = 50) -> None:
    lines = [line for file in labels[:num_looked_at] if file.is_file() for line in _lines(file)]
    if lines and all(len(numbers) == _BOX_NUMBERS for numbers in lines):
        raise DatasetError(
            f"{config_file}: looks like YOLO detection: label files with five numbers a line have no masks"
        )


def _lines(file: Path) -> list[list[str]]:
    try:
        return [line.split() for line in read_file(file).decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file}: expected a text file with a line for each object") from error


def _read_pair(pair: tuple[Path, Path], *, names: Mapping[int, str]) -> LabelledImage:
    image, label_file = pair
    faults = Faults(label_file)
    objects = Objects(faults, read_image_size(image))
    for number, texts in enumerate(_lines(label_file) if label_file.is_file() else [], start=1):
        with objects.entry(f"line {number}"):
            _add_line(texts, objects, names)
    faults.refuse()
    return objects.image(label_file, image)


def _add_line(texts: Sequence[str], objects: Objects, names: Mapping[int, str]) -> None:
    try:
        class_id, *numbers = map(float, texts)
    except ValueError as error:
        raise DatasetError(f"expected numbers, found {shown(' '.join(texts))}") from error
    if class_id not in names:
        raise DatasetError(f"class {texts[0]} has no name; 'names' has the ids {list(names)[:20]}")
    if len(texts) == _BOX_NUMBERS:
        raise DatasetError(_SOME_BOXES)
    if len(texts) < _LEAST_NUMBERS or len(texts) % 2 == 0:
        raise DatasetError(f"expected the class and x and y of at least three points, found {len(texts)} numbers")
    outside = next((value for value in numbers if not -_TOLERANCE <= value <= 1 + _TOLERANCE), None)
    if outside is not None:
        raise DatasetError(f"coordinates are shares of width and height in 0..1, found {outside:g}")
    height, width = objects.size
    scales = [width, height] * (len(numbers) // 2)
    objects.add(names[int(class_id)], [[value * scale for value, scale in zip(numbers, scales, strict=True)]])
