"""Pascal VOC: ``JPEGImages``, ``SegmentationClass``, ``SegmentationObject``, ``ImageSets/Segmentation/train.txt``.

The layouts are those of VOC 2012, of CVAT 2.20 ("Segmentation mask 1.1": ``labelmap.txt``, masks in colours) and of
labelme 5's ``labelme2voc.py`` (``class_names.txt``). Index 255, the border in (224, 224, 192), belongs to no class.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mask2former.data.own_data.dataset import TRAIN, VALID, DataClass, FileMask, ImageEntry, OwnDataset, Segment
from mask2former.data.own_data.formats import DataFormat, Parts, register_format
from mask2former.data.own_data.labelled import LabelledImage, Objects, labelled_dataset, stated_size
from mask2former.data.own_data.png_tree import VOID_ID, count_values
from mask2former.data.own_data.samples import Region, Sample, write_image
from mask2former.data.own_data.scanning import IMAGE_SUFFIXES, files_by_stem, scan
from mask2former.errors import DatasetError
from mask2former.files.atomic import write_bytes_atomic, write_text_atomic
from mask2former.files.faults import Faults, note_headed_faults
from mask2former.files.inputs import read_file
from mask2former.files.maps import Colour, read_coloured_map
from mask2former.structures import bitmasks_to_rles

_CLASS, _OBJECT, _IMAGES, _SETS = "SegmentationClass", "SegmentationObject", "JPEGImages", "ImageSets/Segmentation"
_ROOTS = ("VOCdevkit/VOC20*", "VOC20*")
_VOID, _BACKGROUND = VOID_ID, 0
_VOIDS = frozenset([_VOID])
_NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
).split()
LABEL_TABLE = "labelmap.txt"
_NAME_FILES = (LABEL_TABLE, "class_names.txt")
_NO_CLASS_NAMES = ("__ignore__",)


class MaskPair(NamedTuple):
    """An image, its map of classes and, where there is one, of objects."""

    image: Path
    classes: Path
    objects: Path | None


class Labels(NamedTuple):
    """Classes by the ids of maps, and the ids of colours."""

    names: dict[int, str]
    ids: dict[Colour, int]


class _Voc(DataFormat):
    rank = 1

    def detect(self, path: Path) -> bool:
        return _root(path, _OBJECT if self.tasks == ("instance",) else _CLASS) is not None

    def write(self, folder: Path, parts: Parts, classes: Sequence[DataClass]) -> None:
        names = {_BACKGROUND: "background", **{entry.id: entry.name for entry in classes}}
        if max(names) >= _VOID:
            raise DatasetError(f"{self.title}: {len(classes)} classes; a mask of one byte tells {_VOID - 1} apart")
        for part, samples in parts.items():
            stems = []
            for sample in samples:
                write_image(folder / _IMAGES, sample)
                stems.append(Path(sample.name).with_suffix("").as_posix())
                _write_map(sample.class_ids, folder / _CLASS / f"{stems[-1]}.png")
                if self.tasks == ("instance",):
                    _write_map(_object_map(sample), folder / _OBJECT / f"{stems[-1]}.png")
            name = {TRAIN: "train", VALID: "val"}[part]
            write_text_atomic("".join(f"{stem}\n" for stem in stems), folder / _SETS / f"{name}.txt")
        colours = {number: colour for colour, number in voc_colours().items()}
        lines = [f"{name}:{','.join(map(str, colours[number]))}::\n" for number, name in names.items()]
        write_text_atomic("# label:color_rgb:parts:actions\n" + "".join(lines), folder / _NAME_FILES[0])


@register_format
class VocInstances(_Voc):
    """A map of objects beside the map of classes."""

    name, title, tasks = "voc", "Pascal VOC instances", ("instance",)
    expected = f"Pascal VOC with {_OBJECT}"

    def read(self, path: Path, *, num_workers: int | None = None) -> OwnDataset:
        labels, pairs = _open(path, with_objects=True)
        function = partial(_read_objects, labels=labels)
        read = {
            part: scan(function, found, description=f"masks of {part}", num_workers=num_workers)
            for part, found in pairs.items()
        }
        things = {number: name for number, name in labels.names.items() if number not in (_BACKGROUND, _VOID)}
        return labelled_dataset(self.name, path, read, labels=things)


@register_format
class VocSemantic(_Voc):
    """Maps of classes."""

    name, title, tasks = "voc_semantic", "Pascal VOC classes", ("semantic",)
    expected = f"Pascal VOC with {_CLASS}"

    def read(self, path: Path, *, num_workers: int | None = None) -> OwnDataset:
        labels, pairs = _open(path, with_objects=False)
        function = partial(read_class_map, labels=labels, voids=_VOIDS)
        parts = {
            part: scan(function, found, description=f"masks of {part}", num_workers=num_workers)
            for part, found in pairs.items()
        }
        classes = [DataClass(number, name, is_thing=False) for number, name in labels.names.items()]
        return OwnDataset(self.name, path, classes, parts, has_label_maps=True, void_ids=_VOIDS)


def voc_colours() -> dict[Colour, int]:
    """The index of each colour of VOC's palette: bits of the index, three by three, from the highest bit down."""
    colours = {}
    for index in range(256):
        channels, rest = [0, 0, 0], index
        for shift in range(7, -1, -1):
            for channel in range(3):
                channels[channel] |= (rest >> channel & 1) << shift
            rest >>= 3
        colours[channels[0], channels[1], channels[2]] = index
    return colours


def _root(path: Path, folder: str) -> Path | None:
    if not path.is_dir():
        return None
    places = [path, *(place for pattern in _ROOTS for place in sorted(path.glob(pattern)))]
    found = [place for place in places if (place / folder).is_dir()]
    return found[0] if found and (found[0] / _CLASS).is_dir() else None


def _open(path: Path, *, with_objects: bool) -> tuple[Labels, dict[str, list[MaskPair]]]:
    root = _root(path, _CLASS)
    assert root is not None
    images = files_by_stem(root / _IMAGES, IMAGE_SUFFIXES) if (root / _IMAGES).is_dir() else {}
    classes = files_by_stem(root / _CLASS, (".png",))
    objects = files_by_stem(root / _OBJECT, (".png",)) if with_objects else {}
    pairs, missing = {}, []
    for part, stems in _parts(root, list(classes)).items():
        missing += [f"{root / _CLASS / stem}.png" for stem in stems if stem not in classes]
        missing += [f"{root / _IMAGES / stem}.jpg" for stem in stems if stem not in images]
        missing += [f"{root / _OBJECT / stem}.png" for stem in stems if with_objects and stem not in objects]
        whole = [s for s in stems if s in images and s in classes and (s in objects or not with_objects)]
        pairs[part] = [MaskPair(images[s], classes[s], objects.get(s)) for s in whole]
    note_headed_faults(missing, f"{root}: files that {_SETS} or masks call for are missing")
    if not pairs.get(TRAIN):
        raise DatasetError(f"{root}: no image for training found")
    return _labels(root), pairs


def _parts(root: Path, stems: list[str]) -> dict[str, list[str]]:
    """Names of each part by its list; where there is none for training, the only list, or all masks."""
    files = {file.stem: file for file in sorted((root / _SETS).glob("*.txt"))}
    others = [file for name, file in files.items() if name not in ("val", "test")]
    train = files.get("train") or next(iter(others), None)
    if train is None:
        return {TRAIN: stems}
    parts = {TRAIN: _lines(train)}
    if "val" in files and train.stem == "train":
        parts[VALID] = _lines(files["val"])
    return parts


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in read_file(file).decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file}: expected a text file with one name a line") from error


def _labels(root: Path) -> Labels:
    """Names and colours: of labelmap.txt or class_names.txt, else those of VOC."""
    file = next((root / name for name in _NAME_FILES if (root / name).is_file()), None)
    ids = voc_colours()
    if file is None:
        return Labels(dict(enumerate(_NAMES)), ids)
    if file.name == LABEL_TABLE:
        return read_label_table(file)
    return Labels(dict(enumerate(name for name in _lines(file) if name not in _NO_CLASS_NAMES)), ids)


def read_label_table(file: Path) -> Labels:
    """Classes and colours of CVAT's labelmap.txt, a line ``NAME:R,G,B:parts:actions`` each; ids count the lines.

    Raises:
        DatasetError: lines are wrong; all are named.
    """
    lines = [line for line in _lines(file) if not line.startswith("#")]
    faults, names, stated = Faults(file), dict[int, str](), dict[Colour, int]()
    for number, line in enumerate(lines):
        name, _, rest = line.partition(":")
        try:
            red, green, blue = (int(value) for value in rest.split(":")[0].split(","))
        except ValueError:
            faults.add(f"line {line!r}: expected NAME:R,G,B:parts:actions", is_lasting=True)
            continue
        if (red, green, blue) in stated:
            faults.add(f"line {line!r}: the colour is that of {names[stated[red, green, blue]]!r}", is_lasting=True)
        names[number], stated[red, green, blue] = name, number
    faults.refuse()
    void = next(colour for colour, index in voc_colours().items() if index == _VOID)
    return Labels(names, {void: _VOID, **stated})


def _class_map(pair: MaskPair, labels: Labels | None, voids: frozenset[int]) -> tuple[np.ndarray, bool]:
    """Class ids (H, W), and whether the file itself holds them."""
    found, is_coded = read_coloured_map(pair.classes, {} if labels is None else labels.ids)
    _check_size(found, pair.classes, pair.image)
    known = set(count_values(found)) if labels is None else {*labels.names, *voids}
    wrong = sorted(set(count_values(found)) - known)
    if wrong:
        raise DatasetError(
            f"{pair.classes}: ids {wrong[:10]} have no name; classes have ids {sorted(known - voids)[:20]}"
        )
    return found, is_coded


def _check_size(found: np.ndarray, mask: Path, image: Path) -> None:
    try:
        stated_size(image, (found.shape[0], found.shape[1]))
    except DatasetError as error:
        raise DatasetError(f"{mask}: {error}") from error


def read_class_map(pair: MaskPair, *, labels: Labels | None, voids: frozenset[int]) -> ImageEntry:
    """The image with a segment for each class in its map; without ``labels`` every id is a class.

    Raises:
        DatasetError: a file cannot be read, sizes differ, or an id or colour is none of a class.
    """
    found, is_coded = _class_map(pair, labels, voids)
    segments = tuple(
        Segment(
            number,
            FileMask(pair.classes, number) if is_coded else bitmasks_to_rles((found == number)[None])[0],
            area=count,
        )
        for number, count in count_values(found).items()
        if is_coded or number not in voids
    )
    height, width = found.shape
    return ImageEntry(pair.image, height, width, pair.image.stem, segments, pair.classes if is_coded else None)


def _read_objects(pair: MaskPair, *, labels: Labels) -> LabelledImage:
    assert pair.objects is not None
    classes, _ = _class_map(pair, labels, _VOIDS)
    numbers, _ = read_coloured_map(pair.objects, voc_colours())
    _check_size(numbers, pair.objects, pair.image)
    faults = Faults(pair.objects)
    objects = Objects(faults, (classes.shape[0], classes.shape[1]))
    for number in count_values(numbers):
        if number in (_BACKGROUND, _VOID):
            continue
        mask = numbers == number
        counts = count_values(classes[mask])
        within = sorted(set(counts) - {_VOID})
        if len(within) != 1 or within[0] == _BACKGROUND:
            shown = [labels.names[class_id] for class_id in within]
            faults.add(f"object {number} covers the classes {shown} of {pair.classes}, expected one")
            continue
        objects.add(labels.names[within[0]], mask)
    faults.refuse()
    return objects.image(pair.classes, pair.image)


def _object_map(sample: Sample) -> np.ndarray:
    regions: list[Region] = list(sample.regions())
    if len(regions) >= _VOID:
        raise DatasetError(f"{sample.name}: {len(regions)} objects; a map of one byte tells {_VOID - 1} apart")
    numbers = np.zeros(sample.size, dtype=np.uint8)
    for number, region in enumerate(regions, start=1):
        numbers[region.mask] = number
    return numbers


def _write_map(labels: np.ndarray, path: Path) -> None:
    picture = Image.fromarray(labels.astype(np.uint8))
    picture = Image.frombytes("P", picture.size, picture.tobytes())
    picture.putpalette([value for colour in voc_colours() for value in colour])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_bytes_atomic(buffer.getvalue(), path, is_durable=False)
