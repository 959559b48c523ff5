"""Prepare ADE20K's scene parsing data: semantic label maps, instances, and panoptic annotations of both."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mask2former.data.datasets.classes import Category, class_table
from mask2former.data.datasets.instance_maps import segments_of
from mask2former.data.preparation.labels import lookup, read_red_and_green
from mask2former.data.preparation.panoptic import PanopticImage, write_panoptic
from mask2former.data.preparation.work import Conversion, RunOptions, convert_all, run_all
from mask2former.errors import DatasetError
from mask2former.files.atomic import remove_temporaries, write_json
from mask2former.files.json_files import read_json_if_whole, require_folder
from mask2former.files.maps import read_label_map

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
