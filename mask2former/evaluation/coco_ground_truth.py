"""COCO instance ground truth, and saved detections, checked before anything is computed from them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pycocotools import mask as coco_mask

from mask2former.errors import DatasetError, InputError
from mask2former.files.annotation_values import listed_id, plain_box, plain_number
from mask2former.files.coco import id_shown, names_apart, read_instances, unknown_category
from mask2former.files.faults import Faults
from mask2former.files.inputs import PathLike
from mask2former.files.json_files import read_json, require_keys
from mask2former.structures.segmentations import (
    encode_segmentation,
    is_plain_area,
    segmentation_to_rle,
    shown,
)

logger = logging.getLogger(__name__)


class CocoGroundTruth:
    """Images, categories and annotations of a COCO instances json, or of ``content`` in that form.

    An area that is missing, or that the mask cannot have, is the mask's. ``as_pycocotools`` takes stated areas as they
    are, and never counts the annotation of id 0 as found, as pycocotools does.

    Raises:
        DatasetError: the file is missing or corrupt, or annotations are incomplete or name an unknown image or
            category.
    """

    def __init__(
        self, json_file: PathLike, tasks: Sequence[str], *, content: Any = None, as_pycocotools: bool = False
    ) -> None:
        self.json_file = json_file
        instances = read_instances(json_file, content=content, needs_files=False, needs_categories=True)
        self.image_sizes = {image_id: (i["height"], i["width"]) for image_id, i in instances.images.items()}
        used = {a["category_id"] for found in instances.annotations.values() for a in found}
        self.category_names: dict[int, str] = names_apart(instances.categories, used)
        self._has_masks, self._as_pycocotools = needs_masks(tasks), as_pycocotools
        self._annotations_of = instances.annotations
        self._prepared: set[Any] = set()
        self._num_measured = 0
        self._check(tasks)
        self._number()
        for note in instances.notes:
            logger.warning("%s: %s", json_file, note)

    def image_id_of(self, given: Any) -> Any:
        """Return the image id as the json has it, given as number or text.

        Raises:
            InputError: there is no such image.
        """
        image_id = listed_id(given, self.image_sizes)
        if image_id is None:
            raise InputError(f"image id {given!r} is not among the {len(self.image_sizes)} of {self.json_file}")
        return image_id

    def annotations_of(self, image_id: Any) -> list[dict[str, Any]]:
        """Return annotations with id, bbox and area; masks, where a task compares them, as run-length codes."""
        annotations = self._annotations_of[image_id]
        if image_id not in self._prepared:  # only once: training evaluates a data set again and again
            self._prepared.add(image_id)
            for annotation in annotations:
                self._prepare(annotation, self.image_sizes[image_id])
        return annotations

    def _prepare(self, annotation: dict[str, Any], size: tuple[int, int]) -> None:
        if "segmentation" not in annotation:
            annotation.setdefault("area", float(annotation["bbox"][2] * annotation["bbox"][3]))
            return
        rle = encode_segmentation(annotation["segmentation"], size)
        measured = float(coco_mask.area(rle))
        if "area" not in annotation or not (self._as_pycocotools or is_plain_area(annotation["area"], measured)):
            self._say_measured(annotation, measured)
            annotation["area"] = measured
        if "bbox" not in annotation:
            annotation["bbox"] = coco_mask.toBbox(rle).tolist()
        if self._has_masks:
            annotation["segmentation"] = rle

    def _say_measured(self, annotation: dict[str, Any], measured: float) -> None:
        if "area" not in annotation:
            return
        self._num_measured += 1
        if self._num_measured == 1:
            logger.warning(
                "%s: annotation %s states an area of %g, its mask has %d pixels: areas that masks cannot have are "
                "measured",
                self.json_file,
                id_shown(annotation),
                annotation["area"],
                measured,
            )

    def _check(self, tasks: Sequence[str]) -> None:
        faults = Faults(self.json_file)
        for annotation in (a for found in self._annotations_of.values() for a in found):
            where = f"annotation {id_shown(annotation)}"
            if "segmentation" not in annotation:
                if self._has_masks:
                    faults.add(f"{where} has no segmentation: expected polygons, a run-length code (RLE) or a bitmap")
                elif "bbox" not in annotation:
                    faults.add(f"{where} has neither a bbox nor a segmentation")
        faults.refuse()

    def _number(self) -> None:
        """Give ids to annotations without one, and a new one to id 0, which matching reads as "no match"."""
        annotations = [a for found in self._annotations_of.values() for a in found]
        taken = {a["id"] for a in annotations if "id" in a}
        free = 1
        for annotation in annotations:
            if "id" in annotation and (annotation["id"] != 0 or self._as_pycocotools):
                continue
            if annotation.get("id") == 0:
                logger.info(
                    "%s: the annotation of id 0 counts as any other; pycocotools never takes it for found",
                    self.json_file,
                )
            while free in taken:
                free += 1
            taken.add(free)
            annotation["id"] = free


def read_detections(path: PathLike, truth: CocoGroundTruth, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Return entries of a coco_instances_results.json, masks as run-length codes.

    Raises:
        InputError: entries are incomplete, name an unknown image or category, or have another size than their image.
    """
    return read_results(path, lambda entry: _checked_detection(entry, truth, tasks), kind="detection", of="image")


def read_results(path: PathLike, check: Callable[[Any], dict[str, Any]], *, kind: str, of: str) -> list[dict[str, Any]]:
    """Return the entries of a results file as ``check`` returns them.

    ``kind`` is what an entry is, ``of`` what it belongs to ("image" or "video"), in errors.

    Raises:
        InputError: the file is no list, or ``check`` refused entries; the message names them all.
    """
    entries = read_json(path, error=InputError)
    if not isinstance(entries, list):
        raise InputError(f"{path}: expected a list of {kind}s, found {type(entries).__name__}")
    faults, results = Faults(path, error=InputError), []
    for i, entry in enumerate(entries):
        try:
            results.append(check(entry))
        except InputError as error:
            key = f"{of}_id"
            where = f" ({of} {shown(entry[key])})" if isinstance(entry, dict) and key in entry else ""
            faults.add(f"entry {i}{where}: {error}")
    faults.refuse()
    return results


def _checked_detection(entry: Any, truth: CocoGroundTruth, tasks: Sequence[str]) -> dict[str, Any]:
    entry = require_keys(entry, ("image_id", "category_id", "score"), "detection")
    image_id = known_id(entry, "image", truth.image_sizes, truth.json_file)
    category_id = known_category(entry, truth.category_names)
    checked = {**entry, "image_id": image_id, "category_id": category_id, "score": checked_score(entry["score"])}
    if needs_masks(tasks):
        size = truth.image_sizes[image_id]
        # COCO's tools take polygons and plain run lengths for truth alone.
        checked["segmentation"] = segmentation_to_rle(entry.get("segmentation"), size)
    if "bbox" in tasks:
        if entry.get("bbox") is None and needs_masks(tasks):
            checked["bbox"] = coco_mask.toBbox(checked["segmentation"]).tolist()
        checked["bbox"] = plain_box(checked.get("bbox"))
    return checked


def known_id(entry: Mapping[str, Any], kind: str, known: Mapping[Any, Any], source: PathLike) -> Any:
    """Return the id of the image, or video, of a result as the data set has it; text may stand for a number.

    Raises:
        DatasetError: the data set has none of that id.
    """
    found = listed_id(entry[f"{kind}_id"], known)
    if found not in known:
        raise DatasetError(f"the {kind} is not among the {len(known)} of {source}")
    return found


def known_category(entry: Mapping[str, Any], names: Mapping[int, str]) -> int:
    """Return the category id of a result as the data set has it.

    Raises:
        DatasetError: the data set has none of that id.
    """
    category_id = listed_id(entry["category_id"], names)
    if category_id not in names:
        raise DatasetError(unknown_category(entry["category_id"], names))
    return category_id  # type: ignore[return-value]


def checked_score(score: Any) -> float:
    """Return a score that is a finite number.

    Raises:
        DatasetError: it is something else.
    """
    if isinstance(score, str) or plain_number(abs(score) if isinstance(score, (int, float)) else score) is None:
        raise DatasetError(f"score must be a finite number, found {shown(score)}")
    return score


def needs_masks(tasks: Sequence[str]) -> bool:
    """Return whether one of the tasks compares masks."""
    return any(task in tasks for task in ("segm", "boundary"))
