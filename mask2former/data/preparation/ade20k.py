"""Prepare ADE20K: the 150 classes of scene parsing, with instances and panoptic annotations, and all 847 classes.

The full data set gets smaller images and 16-bit label maps.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mask2former.data.datasets.classes import Category, class_table
from mask2former.data.datasets.instance_maps import segments_of
from mask2former.data.preparation.panoptic import PanopticImage, write_panoptic
from mask2former.data.preparation.work import Conversion, RunOptions, convert_all, lookup, read_red_and_green, run_all
from mask2former.errors import DatasetError
from mask2former.files.atomic import link_or_copy, remove_temporaries, write_json
from mask2former.files.images import read_image, read_image_size
from mask2former.files.json_files import read_json_if_whole, require_folder
from mask2former.files.maps import read_label_map
from mask2former.files.pictures import is_intact, write_picture

FOLDER = "ADEChallengeData2016"
IGNORE_LABEL = 255
SHORT_SPLIT = {"training": "train", "validation": "val"}

_INSTANCES_PER_CLASS = 1000  # segment ids are (class + 1) × 1000 + number, which tells their class


def prepare_ade20k_sem_seg(root: Path, split: str, options: RunOptions) -> None:
    """Write annotations_detectron2/<split>: 0, which is no class, becomes 255; class n becomes n - 1."""
    source, target = (root / FOLDER / name / split for name in ("annotations", "annotations_detectron2"))
    remove_temporaries(target)
    conversions = [Conversion(path, target / path.name) for path in _png_files(source)]
    convert_all(conversions, _semantic_labels, options, description=f"annotations_detectron2/{split}")


def prepare_ade20k_ins_seg(root: Path, split: str, options: RunOptions) -> None:
    """Write ade20k_instance_<train|val>.json from annotations_instance.

    Its PNG files hold the class in the red channel and the number of the instance in the green one.
    """
    sources = _png_files(root / FOLDER / "annotations_instance" / split)
    json_file = root / FOLDER / f"ade20k_instance_{SHORT_SPLIT[split]}.json"
    content = None if options.force else read_json_if_whole(json_file)
    if content is not None and len(content["images"]) == len(sources):
        print(f"{json_file.name}: was there, with {len(sources)} images")
        return
    records = run_all(_instance_records, sources, options, description=json_file.name)
    annotations = [annotation for _, annotations in records for annotation in annotations]
    categories = [{"id": c.id, "name": c.instance_name} for c in _things()]
    write_json(
        {
            "images": [image for image, _ in records],
            "annotations": [{"id": number, **entry} for number, entry in enumerate(annotations, start=1)],
            "categories": categories,
        },
        json_file,
    )
    print(f"{json_file.name}: {len(records)} images, {len(annotations)} instances")


def prepare_ade20k_pan_seg(root: Path, split: str, options: RunOptions) -> None:
    """Write ade20k_panoptic_<train|val>/ and its json: stuff from the label maps, things over it."""
    folder = root / FOLDER
    sources = _png_files(folder / "annotations_instance" / split)
    read = partial(_panoptic_image, semantic_folder=folder / "annotations" / split)
    output = folder / f"ade20k_panoptic_{SHORT_SPLIT[split]}"
    write_panoptic(read, sources, output, class_table("ade20k"), options)


def _png_files(folder: Path) -> list[Path]:
    files = sorted(require_folder(folder, "annotation").glob("*.png"))
    if not files:
        raise DatasetError(f"no *.png file in {folder}")
    return files


def _things() -> list[Category]:
    """Return the instance classes; ADE20K's instance maps number them from 1, in this order."""
    return [c for c in class_table("ade20k") if c.isthing]


def _semantic_labels(conversion: Conversion) -> np.ndarray:
    return _read_semantic(conversion.source)


def _read_semantic(path: Path) -> np.ndarray:
    num_classes = len(class_table("ade20k"))
    shifted = {0: IGNORE_LABEL, **{label: label - 1 for label in range(1, num_classes + 1)}}
    return lookup(read_label_map(path), shifted, path)


def _read_instances(path: Path) -> np.ndarray:
    """Return (class + 1) × 1000 + number (H, W) int32 for pixels of instances, else 0."""
    classes, numbers = read_red_and_green(path)
    belongs = numbers > 0
    things = {number: c.id for number, c in enumerate(_things(), start=1)}
    # Pixels without a number belong to no instance, whatever their class.
    ids = lookup(np.where(belongs, classes, 1), things, path, dtype=np.int32)
    return np.where(belongs, (ids + 1) * _INSTANCES_PER_CLASS + numbers, 0)


def _class_of(segment_id: int) -> int:
    return segment_id // _INSTANCES_PER_CLASS - 1


def _instance_records(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    ids = _read_instances(path)
    height, width = ids.shape
    image = {"id": path.stem, "file_name": f"{path.stem}.jpg", "height": height, "width": width}
    annotations = [
        {
            "image_id": path.stem,
            "category_id": _class_of(segment.id),
            "iscrowd": 0,
            "bbox": list(segment.box),
            "area": segment.area,
            "segmentation": segment.to_rle((height, width)),
        }
        for segment in segments_of(ids)
        if segment.id > 0
    ]
    return image, annotations


def _panoptic_image(path: Path, semantic_folder: Path) -> PanopticImage:
    things = _read_instances(path)
    semantic_file = semantic_folder / path.name
    semantic = _read_semantic(semantic_file)
    if semantic.shape != things.shape:
        raise DatasetError(f"{path} has (height, width) = {things.shape}, {semantic_file} has {semantic.shape}")
    stuff_ids = {c.id: (c.id + 1) * _INSTANCES_PER_CLASS for c in class_table("ade20k") if not c.isthing}
    # A pixel of a thing class that belongs to no instance is void.
    stuff = lookup(semantic, stuff_ids, semantic_file, default=0, dtype=np.int32)
    ids = np.where(things > 0, things, stuff)
    segments = {segment_id: (_class_of(segment_id), False) for segment_id in np.unique(ids).tolist()}
    return PanopticImage(path.stem, f"{path.stem}.jpg", path.name, ids, segments)


FULL_FOLDER = "ADE20K_2021_17_01"
FULL_IGNORE_LABEL = 65535
_MAX_SHORT_SIDE = 512  # pixels; of the published experiments


def prepare_ade20k_full_sem_seg(root: Path, split: str, options: RunOptions) -> None:
    """Write {images,annotations}_detectron2/<split> from images/ADE/<split>, the shorter side at most 512 pixels."""
    folder = root / FULL_FOLDER
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
    labels: np.ndarray = lookup(raw, dict(train_ids), segmentation, default=FULL_IGNORE_LABEL, dtype=np.uint16)
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
