"""Instances in COCO's JSON format, and semantic segmentation as a tree of images and one of label maps.

Masks of instances are polygons, run-length codes or bitmaps; label maps are PNG files with the names of their images.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mask2former.data.catalog import DatasetCatalog, DatasetDict, MetadataCatalog
from mask2former.errors import DatasetError
from mask2former.files.annotation_values import located
from mask2former.files.coco import CocoInstances, id_shown, names_apart, read_instances, unknown_category
from mask2former.files.faults import Faults
from mask2former.files.json_files import require_folder

logger = logging.getLogger(__name__)


def register_sem_seg(
    name: str,
    metadata: Mapping[str, Any],
    image_root: str | os.PathLike[str],
    sem_seg_root: str | os.PathLike[str],
    *,
    image_ext: str = "jpg",
    gt_ext: str = "png",
) -> None:
    """Register a semantic data set; its folders are read when it is first asked for.

    Args:
        name: of the data set.
        metadata: ``stuff_classes`` (all class names), and ``ignore_label`` if it is not 255.
        image_root: folder of the images.
        sem_seg_root: folder of the label maps, with the same names.
        image_ext: suffix of images.
        gt_ext: suffix of label maps.
    """
    images, labels = os.fspath(image_root), os.fspath(sem_seg_root)
    DatasetCatalog.register(name, lambda: load_sem_seg(labels, images, image_ext=image_ext, gt_ext=gt_ext))
    defaults = {"evaluator_type": "sem_seg", "ignore_label": 255}
    MetadataCatalog.get(name).set(**{**defaults, **metadata, "image_root": images, "sem_seg_root": labels})


def load_sem_seg(
    gt_root: str | os.PathLike[str], image_root: str | os.PathLike[str], *, gt_ext: str = "png", image_ext: str = "jpg"
) -> list[DatasetDict]:
    """Return dataset dicts of the images that have a label file of the same relative name, sorted by that name.

    Raises:
        DatasetError: a folder is missing, empty, or no image has a label file.
    """
    labels = _files_below(require_folder(gt_root, "semantic segmentation"), gt_ext)
    images = _files_below(require_folder(image_root, "image"), image_ext)
    names = sorted(images.keys() & labels.keys())
    if not names:
        raise DatasetError(
            f"no *.{image_ext} file below {image_root} has a *.{gt_ext} file of its name below {gt_root}"
        )
    if len(names) < max(len(images), len(labels)):
        logger.warning(
            "%d images below %s and %d label files below %s share only %d names; the others are left out",
            *(len(images), image_root, len(labels), gt_root, len(names)),
        )
    return [{"file_name": str(images[n]), "sem_seg_file_name": str(labels[n]), "image_id": n} for n in names]


def _files_below(folder: Path, extension: str) -> dict[str, Path]:
    """Return files by their path relative to ``folder`` without extension."""
    files = {}
    for path in folder.rglob(f"*.{extension}"):
        files[path.relative_to(folder).with_suffix("").as_posix()] = path
    if not files:
        raise DatasetError(f"no *.{extension} file below {folder}")
    return files


XYWH_ABS = 1  # detectron2's BoxMode of COCO boxes: left, top, width, height in pixels


def register_coco_instances(
    name: str, metadata: Mapping[str, Any], json_file: str | os.PathLike[str], image_root: str | os.PathLike[str]
) -> None:
    """Register a COCO instance data set; its files are read when it is first asked for.

    Args:
        name: of the data set.
        metadata: any attributes; missing class names and ids are taken from the JSON file on loading.
        json_file: in COCO's instance format.
        image_root: folder of the images.
    """
    json_path, images = os.fspath(json_file), os.fspath(image_root)
    DatasetCatalog.register(name, lambda: load_coco_json(json_path, images, name))
    MetadataCatalog.get(name).set(
        **{"evaluator_type": "coco", **metadata, "json_file": json_path, "image_root": images},
    )


def load_coco_json(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    dataset_name: str | None = None,
    *,
    annotated: bool = True,
) -> list[DatasetDict]:
    """Return dataset dicts of all images of a COCO instance file.

    Args:
        json_file: in COCO's instance format.
        image_root: folder of the images.
        dataset_name: category ids become the contiguous ids of its metadata, which is completed from the file
            (``thing_classes``, ``thing_dataset_id_to_contiguous_id``); None keeps the ids.
        annotated: False reads a file of images only, such as a test set; its dicts have no annotations.

    Raises:
        DatasetError: a file or folder is missing, or entries are wrong; the message names them.
    """
    instances = read_instances(json_file, annotated=annotated)
    folder = require_folder(image_root, "image")
    if not instances.images:
        raise DatasetError(f"{json_file} lists no image")
    id_map = _resolve_categories(instances, dataset_name) if annotated else None
    log_notes(json_file, instances.notes)
    if annotated:
        log_notes(json_file, filter(None, [instances.drop_empty(), instances.crowds_note()]))
    faults = Faults(json_file)
    dicts = []
    for image_id, image in instances.images.items():
        record = _image_record(image, folder)
        if annotated:
            found = instances.annotations[image_id]
            record["annotations"] = [_convert_annotation(annotation, id_map, faults) for annotation in found]
        dicts.append(record)
    faults.refuse()
    logger.info("Loaded %d images from %s", len(dicts), json_file)
    return dicts


def log_notes(source: str | os.PathLike[str], notes: Iterable[str]) -> None:
    """Log what was corrected in a file, or left out."""
    for note in notes:
        logger.warning("%s: %s", source, note)


def _image_record(image: Mapping[str, Any], folder: Path) -> DatasetDict:
    return {
        "file_name": str(located(folder, image["file_name"])),
        "height": image["height"],
        "width": image["width"],
        "image_id": image["id"],
    }


def _resolve_categories(instances: CocoInstances, dataset_name: str | None) -> dict[int, int] | None:
    if dataset_name is None:
        return None
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("thing_dataset_id_to_contiguous_id") is None:
        if not instances.categories:
            raise DatasetError(
                f"{instances.source} has no 'categories', and no class names are known for {dataset_name!r}"
            )
        used = {a["category_id"] for found in instances.annotations.values() for a in found}
        names = names_apart(instances.categories, used)
        id_map = {category_id: index for index, category_id in enumerate(sorted(names))}
        try:
            metadata.set(thing_classes=[names[i] for i in sorted(names)], thing_dataset_id_to_contiguous_id=id_map)
        except ValueError as error:
            raise DatasetError(f"{instances.source}: its categories contradict the registered ones: {error}") from error
    return metadata.thing_dataset_id_to_contiguous_id


def _convert_annotation(
    annotation: Mapping[str, Any], id_map: Mapping[int, int] | None, faults: Faults
) -> dict[str, Any]:
    category = annotation["category_id"]
    if id_map is not None and category not in id_map:
        faults.add(f"annotation {id_shown(annotation)}: {unknown_category(category, id_map)}")
    result: dict[str, Any] = {
        "category_id": category if id_map is None else id_map.get(category),
        "iscrowd": annotation["iscrowd"],
        "bbox_mode": XYWH_ABS,
    }
    return result | {key: annotation[key] for key in ("id", "area", "bbox", "segmentation") if key in annotation}
