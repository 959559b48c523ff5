"""What every reader of own data returns: classes, and for each part images with their segments.

Readers keep the ids of the files; which of them train, and as what, is decided afterwards (``classes``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mask2former.errors import DatasetError
from mask2former.files.maps import read_label_map, read_panoptic_ids
from mask2former.structures import segmentation_to_bitmask

TRAIN, VALID = "train", "valid"

PNG_TREE, COCO_INSTANCES, COCO_PANOPTIC, LABELME = "png_tree", "coco_instances", "coco_panoptic", "labelme"
DATASETS = "datasets"


@dataclass(frozen=True)
class FileMask:
    """The pixels of ``file`` that have ``value``: a class id of a label map, or a segment id of a panoptic PNG."""

    file: Path
    value: int
    is_panoptic: bool = False


@dataclass(frozen=True)
class Segment:
    """A region of one class.

    ``mask`` is a ``FileMask`` or a COCO segmentation: polygons, a run-length code, or a bitmap (H, W). ``instance_id``
    tells objects of an image apart and is None for what is no object. ``area`` in pixels, None where not counted.
    """

    class_id: int
    mask: FileMask | Any
    instance_id: int | None = None
    area: int | float | None = None
    bbox_xywh: tuple[float, float, float, float] | None = None
    is_crowd: bool = False


@dataclass(frozen=True)
class ImageEntry:
    """An image with its segments; ``mask_file`` is the picture of all its masks, where the format has one."""

    file: Path
    height: int
    width: int
    image_id: int | str
    segments: tuple[Segment, ...] = ()
    mask_file: Path | None = None


@dataclass(frozen=True)
class DataClass:
    """A class by its id in the files."""

    id: int
    name: str
    is_thing: bool


@dataclass
class OwnDataset:
    """A data set as its files have it; ``parts`` has the images of ``TRAIN`` and, where there is one, ``VALID``.

    With ``has_label_maps`` each pixel is of one class; the ids ``void_ids`` are then of none, unless told otherwise.
    """

    format: str
    root: Path
    classes: list[DataClass]
    parts: dict[str, list[ImageEntry]]
    notes: list[str] = field(default_factory=list)  # what a reader decided or left out
    has_label_maps: bool = False
    void_ids: frozenset[int] = frozenset()

    def images(self) -> Iterator[ImageEntry]:
        """The images of all parts."""
        for images in self.parts.values():
            yield from images

    def leave_out(self, files: Collection[Path]) -> None:
        """Remove the images of these files, and parts that hold no other.

        Raises:
            DatasetError: no image for training is left.
        """
        kept = {part: [i for i in images if i.file not in files] for part, images in self.parts.items()}
        self.parts = {part: images for part, images in kept.items() if images}
        if TRAIN not in self.parts:
            raise DatasetError(f"{self.root}: no image for training is left")


def segment_masks(image: ImageEntry, segments: Sequence[Segment] | None = None) -> np.ndarray:
    """Masks (N, H, W) bool of the segments of an image, by default all; each mask file is read once.

    Raises:
        DatasetError: a file or segmentation cannot be read, or has another size than the image.
    """
    segments = image.segments if segments is None else segments
    masks = np.zeros((len(segments), image.height, image.width), dtype=bool)
    pictures: dict[Path, np.ndarray] = {}
    for mask, segment in zip(masks, segments, strict=True):
        source = segment.mask
        if isinstance(source, FileMask):
            if source.file not in pictures:
                pictures[source.file] = (read_panoptic_ids if source.is_panoptic else read_label_map)(source.file)
            mask[...] = pictures[source.file] == source.value
        else:
            mask[...] = segmentation_to_bitmask(source, image.height, image.width, context=str(image.file))
    return masks
