"""Prepare the full ADE20K with its 847 classes: smaller images, and 16-bit label maps."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mask2former.data.datasets.classes import class_table
from mask2former.data.preparation.labels import lookup, read_red_and_green
from mask2former.data.preparation.work import RunOptions, run_all
from mask2former.errors import DatasetError
from mask2former.files.atomic import link_or_copy, remove_temporaries
from mask2former.files.images import read_image, read_image_size
from mask2former.files.pictures import is_intact, write_picture

FOLDER = "ADE20K_2021_17_01"
IGNORE_LABEL = 65535
_MAX_SHORT_SIDE = 512  # pixels; of the published experiments


def prepare_ade20k_full_sem_seg(root: Path, split: str, options: RunOptions) -> None:
    """Write {images,annotations}_detectron2/<split> from images/ADE/<split>, the shorter side at most 512 pixels."""
    folder = root / FOLDER
    images = sorted((folder / "images" / "ADE" / split).rglob("*.jpg"))
    by_stem = {path.stem: path for path in images}
    if not images:
        raise DatasetError(f"no *.jpg file below {folder / 'images' / 'ADE' / split}")
    if len(by_stem) < len(images):
        raise DatasetError(f"{folder / 'images' / 'ADE' / split} holds two images of one name")
    targets = [folder / f"{role}_detectron2" / split for role in ("images", "annotations")]
    for target in targets:
        remove_temporaries(target)
    prepare_one = partial(
        _prepare_image,
        image_folder=targets[0],
        label_folder=targets[1],
        train_ids=read_train_ids(folder / "index_ade20k.pkl"),
        force=options.force,
    )
    written = run_all(prepare_one, images, options, description=f"ADE20K full, {split}")
    print(f"{split}: {sum(written)} images prepared, {len(written) - sum(written)} were there")


def read_train_ids(index_file: Path) -> dict[int, int]:
    """Return the class of each label in the download; labels are positions in the index's list of names, from 1 on.

    Raises:
        DatasetError: the index is missing or damaged, or lacks a name.
    """
    try:
        index = _IndexUnpickler(io.BytesIO(index_file.read_bytes())).load()
        names = [str(name) for name in index["objectnames"]]
    except FileNotFoundError as error:
        raise DatasetError(f"index of class names not found: {index_file}") from error
    except Exception as error:  # unpickling damaged bytes can raise anything
        raise DatasetError(f"index of class names cannot be read: {index_file} ({error})") from error
    classes = {c.name.lower(): c.id for c in class_table("ade20k_full")}
    train_ids = {place: classes[n.lower()] for place, n in enumerate(names, start=1) if n.lower() in classes}
    missing = sorted(classes.keys() - {name.lower() for name in names})
    if missing:
        raise DatasetError(f"{index_file} lacks {len(missing)} of {len(classes)} class names: {missing[:5]}")
    return train_ids


class _IndexUnpickler(pickle.Unpickler):
    """Reads containers and NumPy arrays; refuses everything else, so that reading never executes code."""

    _ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"})

    def find_class(self, module_name: str, global_name: str) -> Any:
        if module_name.partition(".")[0] == "numpy" and global_name in self._ALLOWED:
            return super().find_class(module_name, global_name)
        raise pickle.UnpicklingError(f"it holds a {module_name}.{global_name}")


def _prepare_image(
    path: Path, image_folder: Path, label_folder: Path, train_ids: Mapping[int, int], force: bool
) -> bool:
    image_target, label_target = image_folder / path.name, label_folder / f"{path.stem}.tif"
    size = read_image_size(path)
    new_size = _limited_size(size)
    if not force and is_intact(image_target, new_size) and is_intact(label_target, new_size):
        return False
    segmentation = path.with_name(f"{path.stem}_seg.png")
    red, green = read_red_and_green(segmentation)
    if red.shape != size:
        raise DatasetError(f"{segmentation} has (height, width) = {red.shape}, its image {size}")
    # Each ten steps of red stand for 256 classes.
    raw = red // 10 * 256 + green
    labels: np.ndarray = lookup(raw, dict(train_ids), segmentation, default=IGNORE_LABEL, dtype=np.uint16)
    if new_size == size:
        link_or_copy(path, image_target)
    else:
        labels = cv2.resize(labels, new_size[::-1], interpolation=cv2.INTER_NEAREST)
        image = cv2.resize(read_image(path, "RGB"), new_size[::-1], interpolation=cv2.INTER_LINEAR)
        write_picture(image, image_target)
    write_picture(labels, label_target)
    return True


def _limited_size(size: tuple[int, int]) -> tuple[int, int]:
    height, width = size
    short = min(size)
    if short <= _MAX_SHORT_SIDE:
        return size
    if height <= width:
        return _MAX_SHORT_SIDE, round(width / height * _MAX_SHORT_SIDE)
    return round(height / width * _MAX_SHORT_SIDE), _MAX_SHORT_SIDE
