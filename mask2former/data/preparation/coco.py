"""Prepare COCO: semantic label maps from panoptic annotations, and COCO-Stuff 10k."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from mask2former.data.datasets.classes import taxonomy_metadata
from mask2former.data.preparation.work import Conversion, RunOptions, convert_all, link_all, lookup
from mask2former.data.targets import semantic_from_panoptic
from mask2former.errors import DatasetError
from mask2former.files.atomic import remove_temporaries
from mask2former.files.json_files import read_json_object, require_keys
from mask2former.files.maps import read_panoptic_ids

IGNORE_LABEL = 255


def prepare_coco_semantic(root: Path, split: str, options: RunOptions) -> None:
    """Write coco/panoptic_semseg_<split>: all 133 classes by contiguous id."""
    metadata = taxonomy_metadata("coco_panoptic_with_sem_seg")
    _semantic_from_panoptic(root / "coco", split, options, metadata["stuff_dataset_id_to_contiguous_id"], "semseg")


def prepare_coco_stuff(root: Path, split: str, options: RunOptions) -> None:
    """Write coco/panoptic_stuff_<split>: all things as class 0, the 53 stuff classes from 1 on."""
    metadata = taxonomy_metadata("coco_panoptic_separated")
    things = dict.fromkeys(metadata["thing_dataset_id_to_contiguous_id"], 0)
    _semantic_from_panoptic(
        root / "coco", split, options, {**metadata["stuff_dataset_id_to_contiguous_id"], **things}, "stuff"
    )


def _semantic_from_panoptic(
    folder: Path, split: str, options: RunOptions, contiguous_of: dict[int, int], role: str
) -> None:
    json_file = folder / "annotations" / f"panoptic_{split}.json"
    output = folder / f"panoptic_{role}_{split}"
    remove_temporaries(output)
    conversions = []
    for annotation in read_json_object(json_file, ("annotations",))["annotations"]:
        annotation = require_keys(annotation, ("file_name", "segments_info"), f"{json_file}: annotation")
        source = folder / f"panoptic_{split}" / annotation["file_name"]
        segments = [_contiguous(s, contiguous_of, f"{json_file}: {source.name}") for s in annotation["segments_info"]]
        conversions.append(Conversion(source, output / f"{source.stem}.png", segments))
    convert_all(conversions, _semantic_labels, options, description=output.name)


def _contiguous(segment: Any, contiguous_of: dict[int, int], context: str) -> dict[str, int]:
    segment = require_keys(segment, ("id", "category_id"), f"{context}: segment")
    if segment["category_id"] not in contiguous_of:
        raise DatasetError(f"{context}: category id {segment['category_id']!r} is not one of COCO panoptic")
    return {"id": segment["id"], "category_id": contiguous_of[segment["category_id"]]}


def _semantic_labels(conversion: Conversion) -> np.ndarray:
    ids = read_panoptic_ids(conversion.source)
    return semantic_from_panoptic(ids, conversion.detail, ignore_label=IGNORE_LABEL).astype(np.uint8)


def prepare_coco_stuff_10k(root: Path, split: str, options: RunOptions) -> None:
    """Write coco/coco_stuff_10k/{images,annotations}_detectron2/<split> from MATLAB files."""
    folder = root / "coco" / "coco_stuff_10k"
    images, labels = (folder / f"{role}_detectron2" / split for role in ("images", "annotations"))
    for output in (images, labels):
        remove_temporaries(output)
    names = (folder / "imageLists" / f"{split}.txt").read_text(encoding="utf-8").split()
    conversions = [
        Conversion(
            folder / "annotations" / f"{name}.mat", labels / f"{name}.png", size_of=folder / "images" / f"{name}.jpg"
        )
        for name in names
    ]
    convert_all(conversions, _labels_of_mat_file, options, description=f"annotations_detectron2/{split}")
    pictures = [(folder / "images" / f"{name}.jpg", images / f"{name}.jpg") for name in names]
    link_all(pictures, options, description=f"images_detectron2/{split}")


def _labels_of_mat_file(conversion: Conversion) -> np.ndarray:
    try:
        with conversion.source.open("rb") as file:
            raw = scipy.io.loadmat(file, variable_names=["S"])["S"]
    except FileNotFoundError as error:
        raise DatasetError(f"label file not found: {conversion.source}") from error
    except Exception as error:  # SciPy raises many kinds on damaged bytes
        raise DatasetError(f"label file cannot be read: {conversion.source} ({error})") from error
    contiguous_of = taxonomy_metadata("coco_stuff_10k")["stuff_dataset_id_to_contiguous_id"]
    return lookup(raw, {0: IGNORE_LABEL, **contiguous_of}, conversion.source)
