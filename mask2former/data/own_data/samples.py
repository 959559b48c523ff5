"""An image with its segments as two maps, which any format can be brought to, and what both libraries agree on.

Segments of maps do not overlap: where they did, the smaller lies on top.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mask2former.data.own_data.dataset import DataClass, ImageEntry, OwnDataset, Segment, segment_masks
from mask2former.errors import DatasetError

BACKGROUND = 0  # class of pixels that belong to no segment
MAX_CLASS_ID, MAX_INSTANCE_ID = 255, 65535


class Region(NamedTuple):
    """A segment of a sample: the pixels of one class and instance."""

    class_id: int
    instance_id: int
    mask: np.ndarray  # (H, W) bool


@dataclass(frozen=True)
class Sample:
    """An encoded image, and maps (H, W): ``class_ids`` uint8, 0 is background, and ``instance_ids`` uint16.

    ``name`` is that of the image file below the folder of its part, different for each.
    """

    name: str
    image: bytes
    class_ids: np.ndarray
    instance_ids: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.class_ids.shape[0], self.class_ids.shape[1]

    def regions(self) -> Iterator[Region]:
        """Yield the segments, in order of class and instance."""
        keys = self.class_ids.astype(np.int64) * (MAX_INSTANCE_ID + 1) + self.instance_ids
        for key in np.unique(keys[self.class_ids != BACKGROUND]).tolist():
            class_id, instance_id = divmod(key, MAX_INSTANCE_ID + 1)
            yield Region(class_id, instance_id, keys == key)


def numbered_classes(classes: Sequence[DataClass]) -> list[DataClass]:
    """Return the classes with the ids 1, 2, … in their order: what maps hold, and 0 is left for the background.

    Raises:
        DatasetError: more classes than maps of one byte tell apart, or two of one name.
    """
    if len(classes) > MAX_CLASS_ID:
        raise DatasetError(f"{len(classes)} classes; annotations of one byte tell {MAX_CLASS_ID} apart")
    names = [entry.name for entry in classes]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DatasetError(f"two classes are called {twice!r}; semantic_class_to_id needs different names")
    return [DataClass(number, entry.name, entry.is_thing) for number, entry in enumerate(classes, start=1)]


def part_samples(dataset: OwnDataset, part: str, classes: Sequence[DataClass]) -> Iterator[Sample]:
    """Yield the images of a part; the place of a class in ``classes``, counted from 1, is its id in the maps.

    Segments of other classes and crowds are background.

    Raises:
        DatasetError: a file cannot be read, or an image has more segments than a map can hold.
    """
    number_of = {entry.id: number for number, entry in enumerate(classes, start=1)}
    names = _names(dataset.parts[part])
    for image, name in zip(dataset.parts[part], names, strict=True):
        segments = [s for s in image.segments if s.class_id in number_of and not s.is_crowd]
        class_ids, instance_ids = _maps(image, segments, number_of)
        try:
            content = image.file.read_bytes()
        except OSError as error:
            raise DatasetError(f"{image.file}: {error.strerror}") from error
        yield Sample(name, content, class_ids, instance_ids)


def _maps(
    image: ImageEntry, segments: Sequence[Segment], number_of: Mapping[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    if len(segments) > MAX_INSTANCE_ID:
        raise DatasetError(f"{image.file}: {len(segments)} segments, a map can hold {MAX_INSTANCE_ID}")
    masks = segment_masks(image, segments)
    class_ids = np.zeros((image.height, image.width), dtype=np.uint8)
    instance_ids = np.zeros((image.height, image.width), dtype=np.uint16)
    for index in np.argsort(-masks.sum((1, 2), dtype=np.int64), kind="stable").tolist():
        class_ids[masks[index]] = number_of[segments[index].class_id]
        instance_ids[masks[index]] = index + 1
    return class_ids, instance_ids


def _names(images: Sequence[ImageEntry]) -> list[str]:
    """File names; with numbers before them where files of different folders bear the same."""
    names = [image.file.name for image in images]
    if len({Path(name).stem for name in names}) == len(names):
        return names
    digits = int(math.log10(len(names))) + 1
    return [f"{number:0{digits}d}_{name}" for number, name in enumerate(names)]
