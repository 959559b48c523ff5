"""Panoptic segmentation in COCO's format: a JSON file and one PNG per image whose colours are segment ids."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mask2former.data.catalog import DatasetCatalog, DatasetDict, MetadataCatalog
from mask2former.data.datasets.coco import load_coco_json, load_sem_seg, log_notes
from mask2former.errors import DatasetError
from mask2former.files.annotation_values import located
from mask2former.files.coco import names_apart, unknown_category
from mask2former.files.coco_panoptic import CocoPanoptic, read_panoptic
from mask2former.files.faults import Faults
from mask2former.files.json_files import require_folder

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]


def register_coco_panoptic(
    name: str,
    metadata: Mapping[str, Any],
    image_root: PathLike,
    panoptic_root: PathLike,
    panoptic_json: PathLike,
    sem_seg_root: PathLike | None = None,
    instances_json: PathLike | None = None,
) -> None:
    """Register a COCO panoptic data set; its files are read when it is first asked for.

    Args:
        name: of the data set.
        metadata: the classes: ``thing_classes``, ``stuff_classes`` (all classes, by contiguous id) and the two maps
            from dataset ids to contiguous ids. What is missing is taken from the JSON file on loading.
        image_root: folder of the images.
        panoptic_root: folder of the PNG files of segment ids.
        panoptic_json: in COCO's panoptic format.
        sem_seg_root: folder of semantic PNG files of the same images.
        instances_json: COCO instances of the same images.
    """
    paths = {
        "image_root": os.fspath(image_root),
        "panoptic_root": os.fspath(panoptic_root),
        "panoptic_json": os.fspath(panoptic_json),
    }
    if sem_seg_root is not None:
        paths["sem_seg_root"] = os.fspath(sem_seg_root)
    if instances_json is not None:
        paths["json_file"] = os.fspath(instances_json)
    defaults = {"evaluator_type": "coco_panoptic_seg", "ignore_label": 255, "label_divisor": 1000}
    DatasetCatalog.register(
        name,
        lambda: load_coco_panoptic_json(
            paths["panoptic_json"],
            paths["image_root"],
            paths["panoptic_root"],
            sem_seg_root=paths.get("sem_seg_root"),
            metadata=name,
        ),
    )
    MetadataCatalog.get(name).set(**{**defaults, **metadata, **paths})


def load_coco_panoptic_json(
    json_file: PathLike,
    image_root: PathLike,
    panoptic_root: PathLike,
    *,
    sem_seg_root: PathLike | None = None,
    metadata: str | Any,
) -> list[DatasetDict]:
    """Return dataset dicts of all annotated images; category ids in ``segments_info`` become contiguous.

    ``metadata`` is a ``Metadata`` object or the name of one; category maps that it lacks are set from the file.

    Raises:
        DatasetError: a file or folder is missing, or an entry is wrong; the message names it.
    """
    resolved = MetadataCatalog.get(metadata) if isinstance(metadata, str) else metadata
    needs_categories = resolved.get("thing_dataset_id_to_contiguous_id") is None
    panoptic = read_panoptic(json_file, needs_isthing=needs_categories)
    if not panoptic.annotations:
        raise DatasetError(f"{json_file} holds no annotation")
    folders = {"image": require_folder(image_root, "image")}
    folders["panoptic"] = require_folder(panoptic_root, "panoptic segmentation")
    if sem_seg_root is not None:
        folders["semantic"] = require_folder(sem_seg_root, "semantic segmentation")
    contiguous_of = resolve_categories(panoptic, resolved)
    log_notes(json_file, filter(None, [*panoptic.notes, panoptic.crowds_note()]))
    faults, dicts = Faults(json_file), []
    for image_id, annotation in panoptic.annotations.items():
        image = panoptic.images.get(image_id, {})
        if panoptic.images and "file_name" not in image:
            faults.add(f"image {image_id}: missing 'file_name'")
        record = _image_record(annotation, image, folders)
        if record["file_name"] == record["pan_seg_file_name"]:
            faults.add(f"image {image_id}: the photo would be the panoptic PNG itself, {record['file_name']}")
        record["segments_info"] = convert_segments(annotation, contiguous_of, faults)
        dicts.append(record)
    faults.refuse()
    _check_first_files(dicts[0], json_file)
    logger.info("Loaded %d images from %s", len(dicts), json_file)
    return dicts


def _image_record(annotation: Mapping[str, Any], image: Mapping[str, Any], folders: Mapping[str, Path]) -> DatasetDict:
    stem = os.path.splitext(annotation["file_name"])[0]
    record: DatasetDict = {
        "file_name": str(located(folders["image"], image.get("file_name", f"{stem}.jpg"))),
        "image_id": annotation["image_id"],
        "pan_seg_file_name": str(located(folders["panoptic"], annotation["file_name"])),
        **{side: image[side] for side in ("height", "width") if side in image},
    }
    if "semantic" in folders:
        record["sem_seg_file_name"] = os.path.join(folders["semantic"], f"{stem}.png")
    return record


def load_coco_panoptic_separated(
    json_file: PathLike, image_root: PathLike, sem_seg_root: PathLike, dataset_name: str
) -> list[DatasetDict]:
    """Return dataset dicts of COCO instances, each with the semantic PNG of its image's name.

    Raises:
        DatasetError: a file or folder is missing, an image has no PNG, or an entry is wrong.
    """
    label_files = {d["image_id"]: d["sem_seg_file_name"] for d in load_sem_seg(sem_seg_root, image_root)}
    dicts = load_coco_json(json_file, image_root, dataset_name)
    for record in dicts:
        name = Path(record["file_name"]).relative_to(image_root).with_suffix("").as_posix()
        if name not in label_files:
            raise DatasetError(
                f"{json_file}: image {record['image_id']} has no label file {name}.png in {sem_seg_root}"
            )
        record["sem_seg_file_name"] = label_files[name]
    return dicts


def _check_first_files(record: DatasetDict, json_file: PathLike) -> None:
    # A wrong folder shows in the first image; the others are found missing when read.
    for key in ("file_name", "pan_seg_file_name", "sem_seg_file_name"):
        if key in record and not os.path.isfile(record[key]):
            raise DatasetError(f"{json_file}: file not found: {record[key]} ({key} of image {record['image_id']})")


def resolve_categories(panoptic: CocoPanoptic, metadata: Any) -> dict[int, tuple[int, bool]]:
    """Return (contiguous id, is thing) by dataset id; ids that ``metadata`` lacks are taken from the file."""
    if metadata.get("thing_dataset_id_to_contiguous_id") is None:
        _set_categories_from_file(panoptic, metadata)
    things: dict[int, int] = metadata.thing_dataset_id_to_contiguous_id
    stuff: dict[int, int] = metadata.get("stuff_dataset_id_to_contiguous_id") or {}
    return {k: (v, False) for k, v in stuff.items()} | {k: (v, True) for k, v in things.items()}


def _set_categories_from_file(panoptic: CocoPanoptic, metadata: Any) -> None:
    if not panoptic.categories:
        raise DatasetError(f"{panoptic.source} has no 'categories', and no classes are known for {metadata.name!r}")
    entries = sorted(panoptic.categories.values(), key=lambda c: (not c.is_thing, c.id))  # things first
    names = names_apart(panoptic.categories, panoptic.counts())
    ids = {c.id: index for index, c in enumerate(entries)}
    things = [c for c in entries if c.is_thing]
    try:
        metadata.set(
            thing_classes=[names[c.id] for c in things],
            stuff_classes=[names[c.id] for c in entries],
            thing_dataset_id_to_contiguous_id={c.id: ids[c.id] for c in things},
            stuff_dataset_id_to_contiguous_id=ids,
        )
    except ValueError as error:
        raise DatasetError(f"{panoptic.source}: its categories contradict the registered ones: {error}") from error


def convert_segments(
    annotation: Mapping[str, Any], contiguous_of: Mapping[int, tuple[int, bool]], faults: Faults
) -> list[dict[str, Any]]:
    """Return the segments of an annotation with their contiguous classes and ``isthing``."""
    segments = []
    for segment in annotation["segments_info"]:
        if segment["category_id"] not in contiguous_of:
            unknown = unknown_category(segment["category_id"], contiguous_of)
            faults.add(f"annotation of image {annotation['image_id']}: segment {segment['id']}: {unknown}")
            continue
        contiguous_id, is_thing = contiguous_of[segment["category_id"]]
        segments.append({**segment, "category_id": contiguous_id, "isthing": is_thing})
    return segments
