"""Panoptic ground truth: a COCO panoptic json, checked, and its PNGs of segment ids, read ahead in threads."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from mask2former.errors import InputError
from mask2former.evaluation.protocol import metadata_path
from mask2former.files.annotation_values import listed_id
from mask2former.files.coco import names_apart
from mask2former.files.coco_panoptic import read_panoptic
from mask2former.files.inputs import PathLike
from mask2former.files.maps import read_panoptic_ids
from mask2former.structures.metadata import Metadata

T = TypeVar("T")

_MAX_THREADS = 4


class ReadAhead(Generic[T]):
    """The items of a sequence, in order; the next ones are read in threads meanwhile.

    ``read`` is called with a position, in threads, and should spend its time outside of Python (decoding). What it
    raises is raised when that item is requested. ``num_ahead`` items are kept in memory.
    """

    def __init__(self, read: Callable[[int], T], length: int, *, num_ahead: int = 2 * _MAX_THREADS) -> None:
        self._read, self._length, self._num_ahead = read, length, num_ahead
        self._threads = ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="read-ahead")
        self._pending: dict[int, Future[T]] = {}
        self._next: int | None = None  # the position that would be in order

    def __getitem__(self, position: int) -> T:
        if self._next not in (None, position):
            for future in self._pending.values():
                future.cancel()
            self._pending = {}
        else:
            for ahead in range(position, min(position + 1 + self._num_ahead, self._length)):
                if ahead not in self._pending:
                    self._pending[ahead] = self._threads.submit(self._read, ahead)
        self._next = position + 1
        future_item = self._pending.pop(position, None)
        return self._read(position) if future_item is None else future_item.result()


logger = logging.getLogger(__name__)

_NUM_KEPT = 8  # images whose ids are kept for the next evaluator: those of a batch


class PanopticGroundTruth:
    """Annotations by image id, categories, and PNGs, read once and shared by evaluators."""

    def __init__(self, json_file: PathLike, png_folder: PathLike) -> None:
        self.json_file, self.png_folder = Path(json_file), Path(png_folder)
        panoptic = read_panoptic(json_file, needs_categories=True)
        self.categories = list(panoptic.categories.values())
        self.images = list(panoptic.images.values())
        self.annotations = panoptic.annotations
        self._positions = {image_id: position for position, image_id in enumerate(self.annotations)}
        self._paths = paths = [self.png_folder / annotation["file_name"] for annotation in self.annotations.values()]
        # Evaluation mostly goes through a data set in its order: the next images are decoded meanwhile.
        ahead = ReadAhead(lambda position: read_panoptic_ids(paths[position]), len(paths))
        self._ids_at = functools.lru_cache(maxsize=_NUM_KEPT)(ahead.__getitem__)
        self.category_ids = list(panoptic.categories)
        names = names_apart(panoptic.categories, panoptic.counts())
        self.category_names = [names[category_id] for category_id in self.category_ids]
        self.is_thing = np.array([category.is_thing for category in self.categories], dtype=bool)
        for note in panoptic.notes:
            logger.warning("%s: %s", json_file, note)

    def annotation_of(self, image_id: Any) -> Mapping[str, Any]:
        """Return the annotation of an image, whose id is a number or text.

        Raises:
            InputError: there is none.
        """
        known = listed_id(image_id, self.annotations)
        if known not in self.annotations:
            raise InputError(f"image id {image_id!r} is not among the {len(self.annotations)} of {self.json_file}")
        return self.annotations[known]  # type: ignore[index]

    def position_of(self, image_id: Any) -> int:
        """Return the position of an image id in the json."""
        return self._positions[self.annotation_of(image_id)["image_id"]]

    def read(self, annotation: Mapping[str, Any]) -> tuple[np.ndarray, Sequence[Mapping[str, Any]], str]:
        """Return ids (H, W), segments, and a name for error messages."""
        position = self._positions[annotation["image_id"]]
        name = f"{self._paths[position]} (image {annotation['image_id']!r})"
        return self._ids_at(position), annotation["segments_info"], name

    def check_complete(self, evaluated: Iterable[Any]) -> None:
        """Raise InputError unless every image was evaluated exactly once."""
        seen: set[Any] = set()
        for image_id in evaluated:
            if image_id in seen:
                raise InputError(f"image id {image_id!r} of {self.json_file} was predicted twice")
            seen.add(image_id)
        missing = [image_id for image_id in self.annotations if image_id not in seen]
        if missing:
            raise InputError(
                f"no prediction for {len(missing)} of the {len(self.annotations)} images of {self.json_file}: "
                f"image ids {missing[:5]}{' …' if len(missing) > 5 else ''}"
            )


def panoptic_truth(metadata: Metadata, evaluator: str) -> PanopticGroundTruth:
    """Return the ground truth that ``panoptic_json`` and ``panoptic_root`` name; errors mention ``evaluator``.

    Raises:
        DatasetError: the metadata lack one of them, or the json is wrong.
    """
    json_file, folder = (metadata_path(metadata, key, evaluator) for key in ("panoptic_json", "panoptic_root"))
    return PanopticGroundTruth(json_file, folder)
