"""Prepare Cityscapes and Mapillary Vistas.

Cityscapes gets maps of training ids, and panoptic annotations from its instance maps; the annotations of Vistas 1.2
are put where the data sets read them, and checked.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from mask2former.data.datasets.cityscapes import INSTANCES_PER_CLASS
from mask2former.data.datasets.classes import class_table
from mask2former.data.preparation.panoptic import PanopticImage, write_panoptic
from mask2former.data.preparation.work import Conversion, RunOptions, convert_all, link_all, lookup, run_all
from mask2former.errors import DatasetError
from mask2former.files.atomic import remove_temporaries
from mask2former.files.images import read_image_size
from mask2former.files.json_files import read_json_object, require_folder
from mask2former.files.maps import read_label_map
from mask2former.files.pictures import is_intact

IGNORE_LABEL = 255
PANOPTIC_SPLITS = ("train", "val")  # the annotations of the test images are not published
_LABELS, _TRAIN_LABELS, _INSTANCES = "_labelIds.png", "_labelTrainIds.png", "_instanceIds.png"


def prepare_cityscapes(root: Path, split: str, options: RunOptions) -> None:
    """Write gtFine/<split>/<city>/*_labelTrainIds.png and gtFine/cityscapes_panoptic_<split>/ with its json."""
    folder = root / "cityscapes" / "gtFine" / split
    remove_temporaries(folder)
    conversions = [
        Conversion(path, path.with_name(path.name.removesuffix(_LABELS) + _TRAIN_LABELS))
        for path in _annotation_files(folder, _LABELS)
    ]
    convert_all(conversions, _train_labels, options, description=f"labelTrainIds/{split}")
    if split in PANOPTIC_SPLITS:
        output = folder.with_name(f"cityscapes_panoptic_{split}")
        sources = _annotation_files(folder, _INSTANCES)
        write_panoptic(_panoptic_image, sources, output, class_table("cityscapes"), options)


def _annotation_files(folder: Path, suffix: str) -> list[Path]:
    files = sorted(folder.glob(f"*/*_gtFine{suffix}"))
    if not files:
        raise DatasetError(f"no <city>/*_gtFine{suffix} below {folder}")
    return files


def _train_labels(conversion: Conversion) -> np.ndarray:
    train_ids = {c.id: train_id for train_id, c in enumerate(class_table("cityscapes"))}
    return lookup(read_label_map(conversion.source), train_ids, conversion.source, default=IGNORE_LABEL)


def _panoptic_image(path: Path) -> PanopticImage:
    """Return an image with the instance map's ids: class × 1000 + number; the class alone for stuff and groups."""
    ids = read_label_map(path).astype(np.int32)
    things = {c.id: c.isthing for c in class_table("cityscapes")}
    segments, ignored = {}, []
    for segment_id in np.flatnonzero(np.bincount(ids.reshape(-1))).tolist():
        is_single = segment_id >= INSTANCES_PER_CLASS
        category = segment_id // INSTANCES_PER_CLASS if is_single else segment_id
        if category in things:
            segments[segment_id] = (category, things[category] and not is_single)
        else:
            ignored.append(segment_id)
    void = lookup(ids, dict.fromkeys(ignored, 0), path, default=1) == 0
    stem = path.name.removesuffix(_INSTANCES)
    image_id = stem.removesuffix("_gtFine")
    ids[void] = 0
    return PanopticImage(image_id, f"{stem}_leftImg8bit.png", f"{stem}_panoptic.png", ids, segments)


FOLDER = "mapillary_vistas"
_ROLES = ("labels", "instances", "panoptic")
_PANOPTIC_JSON = "panoptic_2018.json"


def prepare_mapillary_vistas(root: Path, split: str, options: RunOptions) -> None:
    """Move in the annotations of v1.2/ if the download is version 2.0; then check that every image has its own."""
    folder = root / FOLDER / split
    nested = folder / "v1.2"
    for role in _ROLES:
        if (nested / role).is_dir():
            pairs = [(path, folder / role / path.name) for path in sorted((nested / role).iterdir())]
            link_all(pairs, options, description=f"{split}/{role}")
    images = sorted(require_folder(folder / "images", "image").glob("*.jpg"))
    if not images:
        raise DatasetError(f"no *.jpg file in {folder / 'images'}")
    read_json_object(folder / "panoptic" / _PANOPTIC_JSON, ("annotations",))
    run_all(partial(_check_image, folder=folder), images, options, description=f"{split}: checking")
    print(f"{split}: {len(images)} images have their annotations")


def _check_image(image: Path, folder: Path) -> None:
    size = read_image_size(image)
    for role in ("labels", "panoptic"):
        path = folder / role / f"{image.stem}.png"
        if not is_intact(path, size):
            state = "is cut off, damaged, or has another size than its image" if path.exists() else "not found"
            raise DatasetError(f"{path} {state}")
