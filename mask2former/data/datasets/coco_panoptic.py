"""Panoptic segmentation in COCO's format: a JSON file and one PNG per image whose colours are segment ids."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mask2former.data.catalog import DatasetCatalog, DatasetDict, MetadataCatalog
from mask2former.data.datasets.coco import images_of, load_coco_json
from mask2former.data.datasets.sem_seg import load_sem_seg
from mask2former.errors import DatasetError
from mask2former.files.json_files import read_json_object, require_folder, require_keys

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
    """Register ``name`` for a COCO panoptic data set; its files are read when it is first asked for.

    ``metadata`` holds the classes: ``thing_classes``, ``stuff_classes`` (all classes, by contiguous id) and the two
    maps from dataset ids to contiguous ids. Where it lacks them they are taken from the JSON file on loading.
    ``sem_seg_root`` holds semantic PNGs and ``instances_json`` COCO instances of the same images.
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
    """Dataset dicts of all annotated images; category ids in ``segments_info`` become contiguous.

    ``metadata`` is a ``Metadata`` object or the name of one. The category maps it lacks are set from the file.

    Raises:
        DatasetError: a file or folder is missing, or an entry is wrong; the message names it.
    """
    content = read_json_object(json_file, ("annotations",))
    if not content["annotations"]:
        raise DatasetError(f"{json_file} holds no annotation")
    folders = {"image": require_folder(image_root, "image")}
    folders["panoptic"] = require_folder(panoptic_root, "panoptic segmentation")
    if sem_seg_root is not None:
        folders["semantic"] = require_folder(sem_seg_root, "semantic segmentation")
    resolved = MetadataCatalog.get(metadata) if isinstance(metadata, str) else metadata
    contiguous_of = resolve_categories(content, resolved, json_file)
    images = images_of(content, Path(json_file))
    dicts = []
    for annotation in content["annotations"]:
        context = f"{json_file}: annotation of image {_image_id_of(annotation)}"
        annotation = require_keys(annotation, ("image_id", "file_name", "segments_info"), context)
        record = _image_record(annotation, images.get(annotation["image_id"], {}), folders)
        record["segments_info"] = [convert_segment(s, contiguous_of, context) for s in annotation["segments_info"]]
        dicts.append(record)
    _check_first_files(dicts[0], json_file)
    logger.info("Loaded %d images from %s", len(dicts), json_file)
    return dicts


def _image_record(annotation: Mapping[str, Any], image: Mapping[str, Any], folders: Mapping[str, Path]) -> DatasetDict:
    stem = os.path.splitext(annotation["file_name"])[0]
    record: DatasetDict = {
        "file_name": os.path.join(folders["image"], image.get("file_name", f"{stem}.jpg")),
        "image_id": annotation["image_id"],
        "pan_seg_file_name": os.path.join(folders["panoptic"], annotation["file_name"]),
        **{side: image[side] for side in ("height", "width") if side in image},
    }
    if "semantic" in folders:
        record["sem_seg_file_name"] = os.path.join(folders["semantic"], f"{stem}.png")
    return record


def _image_id_of(annotation: Any) -> Any:
    return annotation.get("image_id") if isinstance(annotation, dict) else "?"


def load_coco_panoptic_separated(
    json_file: PathLike, image_root: PathLike, sem_seg_root: PathLike, dataset_name: str
) -> list[DatasetDict]:
    """Dataset dicts of COCO instances, each with the semantic PNG of its image's name.

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


def resolve_categories(content: dict[str, Any], metadata: Any, json_file: PathLike) -> dict[int, tuple[int, bool]]:
    """Dataset id → (contiguous id, is thing); where ``metadata`` lacks the ids it is completed from the file."""
    if metadata.get("thing_dataset_id_to_contiguous_id") is None:
        _set_categories_from_file(content, metadata, json_file)
    things: dict[int, int] = metadata.thing_dataset_id_to_contiguous_id
    stuff: dict[int, int] = metadata.get("stuff_dataset_id_to_contiguous_id") or {}
    return {k: (v, False) for k, v in stuff.items()} | {k: (v, True) for k, v in things.items()}


def _set_categories_from_file(content: dict[str, Any], metadata: Any, json_file: PathLike) -> None:
    categories = content.get("categories")
    if not categories:
        raise DatasetError(f"{json_file} has no 'categories', and no classes are known for {metadata.name!r}")
    context = f"{json_file}: category"
    entries = [require_keys(c, ("id", "name", "isthing"), context) for c in categories]
    entries.sort(key=lambda c: (not c["isthing"], c["id"]))  # things first
    ids = {c["id"]: index for index, c in enumerate(entries)}
    things = [c for c in entries if c["isthing"]]
    try:
        metadata.set(
            thing_classes=[c["name"] for c in things],
            stuff_classes=[c["name"] for c in entries],
            thing_dataset_id_to_contiguous_id={c["id"]: ids[c["id"]] for c in things},
            stuff_dataset_id_to_contiguous_id=ids,
        )
    except ValueError as error:
        raise DatasetError(f"{json_file}: its categories contradict the registered ones: {error}") from error


def convert_segment(segment: Any, contiguous_of: dict[int, tuple[int, bool]], context: str) -> dict[str, Any]:
    """An entry of ``segments_info`` with its contiguous class and ``isthing``; ``context`` says where it stands."""
    segment = require_keys(segment, ("id", "category_id"), f"{context}: segment")
    category = segment["category_id"]
    if not isinstance(category, int) or category not in contiguous_of:
        raise DatasetError(
            f"{context}: segment {segment['id']} has category id {category!r}, which has no class; "
            f"classes have ids {sorted(contiguous_of)}"
        )
    contiguous_id, is_thing = contiguous_of[category]
    return {**segment, "category_id": contiguous_id, "isthing": is_thing, "iscrowd": segment.get("iscrowd", 0)}
