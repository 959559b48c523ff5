"""COCO instances: a JSON file, read and checked once, for training, own data, evaluation and conversion."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mask2former.errors import DatasetError, InputError
from mask2former.files.annotation_values import (
    Id,
    listed_id,
    numbered_id,
    plain_box,
    plain_flag,
    plain_id,
    plain_name,
    plain_number,
    plain_size,
)
from mask2former.files.faults import Faults
from mask2former.files.json_files import read_json, require_keys, require_lists
from mask2former.structures.segmentations import check_segmentation, has_pixels, lacks_points, shown

PathLike = str | os.PathLike[str]

_SIDES = ("height", "width")
_IS_FAULTY = "is_faulty"
_NUM_NAMED = 5  # entries that a note names


class Category(NamedTuple):
    """A category of a file; without ``isthing`` it is a thing."""

    id: int
    name: str
    is_thing: bool = True


@dataclass
class CocoInstances:
    """The content of a COCO instances file, every value checked and in one form.

    ``images`` by id: id, height, width and, if given, file_name. ``annotations`` by image id, one list for each image:
    image_id, category_id, iscrowd (0 or 1) and, if given, id, bbox (x, y, width, height), area, segmentation (in the
    form of ``check_segmentation``); is_empty is true if the mask has no pixel. ``notes`` say what was corrected or
    looks wrong.
    """

    source: PathLike
    images: dict[Id, dict[str, Any]]
    categories: dict[int, Category]
    annotations: dict[Id, list[dict[str, Any]]]
    notes: list[str] = field(default_factory=list)

    @property
    def num_annotations(self) -> int:
        """Return the number of annotations, including crowds."""
        return sum(map(len, self.annotations.values()))

    def crowds_note(self) -> str | None:
        """Return a note of how many annotations are crowds and not trained on."""
        crowds = sum(annotation["iscrowd"] for found in self.annotations.values() for annotation in found)
        return f"left out {crowds} of {self.num_annotations} annotations: iscrowd 1" if crowds else None

    def drop_empty(self) -> str | None:
        """Remove annotations whose masks have no pixel, and note how many.

        Raises:
            DatasetError: they are more than half of all, so that the file must be wrong.
        """
        total, empty = self.num_annotations, _empty_of(self.annotations)
        if not empty:
            return None
        named = _named([id_shown(annotation) for annotation in empty])
        message = f"{len(empty)} of {total} annotations have no pixel in their image ({named})"
        if 2 * len(empty) > total:
            raise DatasetError(f"{self.source}: {message}{_normalised_hint(empty)}")
        for image_id, found in self.annotations.items():
            self.annotations[image_id] = [a for a in found if not a.get("is_empty")]
        return f"left out {message}"


def read_instances(
    path: PathLike,
    *,
    content: Any = None,
    annotated: bool = True,
    needs_files: bool = True,
    needs_categories: bool = False,
) -> CocoInstances:
    """Read and check a COCO instances file, or its ``content``.

    ``annotated`` false reads only images, as of a test set. With ``needs_files`` images must have a file name.

    Raises:
        DatasetError: the file cannot be read, or the faults of all its entries.
    """
    lists = ("images", *(("annotations",) if annotated else ()), *(("categories",) if needs_categories else ()))
    content = require_lists(read_json(path) if content is None else content, lists, path, optional=("categories",))
    faults = Faults(path)
    images = read_images(content["images"], faults, needs_files=needs_files)
    categories = read_categories(content.get("categories") or (), faults)
    instances = CocoInstances(path, images, categories, {image_id: [] for image_id in images})
    if annotated:
        _read_annotations(content["annotations"], instances, faults)
        counts = Counter(a["category_id"] for found in instances.annotations.values() for a in found)
        refuse_shared_names(categories.values(), counts, faults)
    faults.refuse()
    for image_id in drop_faulty(images):
        del instances.annotations[image_id]
    return instances


def read_images(
    entries: Iterable[Any], faults: Faults, *, needs_files: bool = True, needs_size: bool = True
) -> dict[Id, dict[str, Any]]:
    """Return images by id; a faulty one stays until ``drop_faulty``, so that its annotations are not reported too."""
    images: dict[Id, dict[str, Any]] = {}
    needed = (*(("file_name",) if needs_files else ()), *(_SIDES if needs_size else ()))
    for entry in entries:
        try:
            entry = require_keys(entry, ("id",), "entry")
            image_id = plain_id(entry["id"])
            if image_id in images:
                images[image_id][_IS_FAULTY] = True  # annotations may be of the one or of the other
                names = f"{shown(images[image_id].get('file_name'))} and {shown(entry.get('file_name'))}"
                raise DatasetError(f"the id occurs twice, for {names}")
            images[image_id] = {"id": image_id, "height": 1, "width": 1, _IS_FAULTY: True}
            entry = require_keys(entry, needed, "entry")
            image: dict[str, Any] = {"id": image_id}
            if needs_size or any(entry.get(side) is not None for side in _SIDES):
                image |= zip(_SIDES, plain_size(entry), strict=True)
            if needs_files or entry.get("file_name") is not None:
                image["file_name"] = plain_name(entry["file_name"])
            images[image_id] = image
        except DatasetError as error:
            faults.add(f"image {id_shown(entry)}: {without_entry(error)}")
    return images


def drop_faulty(images: dict[Id, dict[str, Any]]) -> list[Id]:
    """Remove the faulty images, and return their ids."""
    faulty = [image_id for image_id, image in images.items() if image.get(_IS_FAULTY)]
    for image_id in faulty:
        del images[image_id]
    return faulty


def read_categories(entries: Iterable[Any], faults: Faults, *, needs_isthing: bool = False) -> dict[int, Category]:
    """Return categories by id, in the order of the file; a faulty one stays in the result, as with images."""
    categories: dict[int, Category] = {}
    for entry in entries:
        try:
            entry = require_keys(entry, ("id", "name"), "entry")
            category_id, name = numbered_id(entry["id"], "id"), str(entry["name"])
            if category_id in categories:
                raise DatasetError(f"the id occurs twice, for {categories[category_id].name!r} and {name!r}")
            categories[category_id] = Category(category_id, name)
            if needs_isthing or entry.get("isthing") is not None:
                entry = require_keys(entry, ("isthing",), "entry")
                categories[category_id] = Category(category_id, name, bool(plain_flag(entry["isthing"], "isthing")))
        except DatasetError as error:
            faults.add(f"category {id_shown(entry)}: {without_entry(error)}", is_lasting=True)
    return categories


def refuse_shared_names(categories: Iterable[Category], counts: Mapping[int, int], faults: Faults) -> None:
    """Add a fault for each name that several categories with objects (``counts`` by id) share."""
    for name, ids in shared_names(categories).items():
        used = [category_id for category_id in ids if counts.get(category_id)]
        if len(used) > 1:
            fault = f"categories {used} have the same name {name!r}: their objects could not be told apart"
            faults.add(fault, is_lasting=True)


def shared_names(categories: Iterable[Category]) -> dict[str, list[int]]:
    """Return the names that several categories share, each with their ids."""
    ids: dict[str, list[int]] = {}
    for category in categories:
        ids.setdefault(category.name, []).append(category.id)
    return {name: found for name, found in ids.items() if len(found) > 1}


def names_apart(categories: Mapping[int, Category], used: Collection[int]) -> dict[int, str]:
    """Return a distinct name for each category id.

    Of several with one name, those without objects (not in ``used``) get their id appended.
    """
    shared = shared_names(categories.values())
    names = {}
    for category_id, category in categories.items():
        alone = category.name not in shared or category_id in used
        names[category_id] = category.name if alone else f"{category.name} (id {category_id})"
    return names


def id_shown(entry: Any) -> str:
    """Return the name of an entry in messages."""
    return shown(entry["id"]) if isinstance(entry, dict) and entry.get("id") is not None else "without id"


def unknown_category(category_id: Any, known: Collection[int]) -> str:
    """Return the fault of an entry whose category the file does not list."""
    return f"category id {shown(category_id)} has no class; classes have ids {sorted(known)[:20]}"


def _read_annotations(entries: Iterable[Any], instances: CocoInstances, faults: Faults) -> None:
    seen: set[Id] = set()
    repaired: dict[str, list[str]] = {}  # ids by what was put right
    pointless: list[Any] = []
    for entry in entries:
        try:
            annotation = _read_annotation(entry, instances, seen, repaired)
        except _PointlessError:
            pointless.append(entry)
            continue
        except InputError as error:
            faults.add(f"annotation {id_shown(entry)}: {without_entry(error)}{_image_of(entry, instances)}")
            continue
        instances.annotations[annotation["image_id"]].append(annotation)
    instances.notes += [f"{what}: {_named(ids)}" for what, ids in repaired.items()]
    _leave_out_pointless(pointless, instances, faults)


class _PointlessError(DatasetError):
    """An annotation whose polygons all have fewer than three points."""


def _leave_out_pointless(entries: list[Any], instances: CocoInstances, faults: Faults) -> None:
    """Note the annotations that were left out; if they are more than half of all, report each as a fault."""
    total = instances.num_annotations + len(entries)
    if 2 * len(entries) > total:
        for entry in entries:
            found = [len(polygon) for polygon in entry["segmentation"][:_NUM_NAMED]]
            faults.add(
                f"annotation {id_shown(entry)}: a polygon needs at least 3 points (6 numbers, x and y), "
                f"found {', '.join(map(str, found))} numbers{_image_of(entry, instances)}"
            )
    elif entries:
        named = _named([id_shown(entry) for entry in entries])
        instances.notes.append(
            f"left out {len(entries)} of {total} annotations, whose polygons all have fewer than 3 points: {named}"
        )


def _read_annotation(
    entry: Any, instances: CocoInstances, seen: set[Id], repaired: dict[str, list[str]]
) -> dict[str, Any]:
    entry = require_keys(entry, ("image_id", "category_id"), "entry")
    annotation: dict[str, Any] = {}
    if entry.get("id") is not None:
        annotation["id"] = plain_id(entry["id"])
        # Some early COCO files repeat ids, and evaluation then matches wrongly without a word.
        if annotation["id"] in seen:
            raise DatasetError("the id occurs twice")
        seen.add(annotation["id"])
    image = instances.images.get(listed_id(entry["image_id"], instances.images))  # type: ignore[arg-type]
    if image is None:
        raise DatasetError(f"belongs to image {shown(entry['image_id'])}, which is not listed")
    category_id = numbered_id(entry["category_id"], "category_id")
    if instances.categories and category_id not in instances.categories:
        raise DatasetError(unknown_category(entry["category_id"], instances.categories))
    annotation |= {"image_id": image["id"], "category_id": category_id}
    annotation["iscrowd"] = plain_flag(entry.get("iscrowd"), "iscrowd")
    if entry.get("bbox") is not None:
        annotation["bbox"] = plain_box(entry["bbox"])
    if "area" in entry:
        area = plain_number(entry["area"])
        if area is None:
            repaired.setdefault("area is no number of pixels, it is measured from the mask", []).append(id_shown(entry))
        else:
            annotation["area"] = area
    if entry.get("segmentation") is not None and not image.get(_IS_FAULTY):
        size = (image["height"], image["width"])
        if lacks_points(entry["segmentation"], size):
            raise _PointlessError
        annotation["segmentation"] = checked = check_segmentation(entry["segmentation"], size)
        if isinstance(checked, list) and len(checked) < len(entry["segmentation"]):
            repaired.setdefault("left out parts of fewer than 3 points", []).append(id_shown(entry))
        if not has_pixels(checked, size):
            annotation["is_empty"] = True
    return annotation


def without_entry(error: Exception) -> str:
    """Return the message of an error of ``require_keys`` without the name of the entry."""
    return str(error).removeprefix("entry: ")


def _image_of(entry: Any, instances: CocoInstances) -> str:
    image_id = entry.get("image_id") if isinstance(entry, dict) else None
    image = instances.images.get(listed_id(image_id, instances.images), {})  # type: ignore[arg-type]
    return f" (image {image['file_name']})" if "file_name" in image else ""


def _empty_of(annotations: Mapping[Id, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [a for found in annotations.values() for a in found if a.get("is_empty")]


def _named(ids: list[str]) -> str:
    more = f" and {len(ids) - _NUM_NAMED} more" if len(ids) > _NUM_NAMED else ""
    return f"annotation{'s' * (len(ids) > 1)} {', '.join(ids[:_NUM_NAMED])}{more}"


def _normalised_hint(empty: list[dict[str, Any]]) -> str:
    polygons = [p for a in empty if isinstance(a["segmentation"], list) for p in a["segmentation"]]
    is_normalised = bool(polygons) and all(0 <= min(p) and max(p) <= 1 for p in polygons)
    return "; their coordinates are normalised to 0..1, expected pixels" if is_normalised else ""
