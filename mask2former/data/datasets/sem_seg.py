"""Semantic segmentation as a tree of images and a tree of PNG files of class ids with the same names."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mask2former.data.catalog import DatasetCatalog, DatasetDict, MetadataCatalog
from mask2former.errors import DatasetError
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
