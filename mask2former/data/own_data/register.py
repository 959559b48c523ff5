"""The parts of an own data set in the catalogs, as the config keys below ``DATASETS.OWN`` describe them.

The config is all that is needed: other processes, later evaluations and predictions register from it again. Class names
and ids stand in it, so that predicting needs no data.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mask2former.config import CfgNode
from mask2former.data.catalog import DatasetCatalog, DatasetDict, MetadataCatalog
from mask2former.data.datasets.coco import load_coco_json
from mask2former.data.datasets.coco_panoptic import load_coco_panoptic_json
from mask2former.data.own_data.dataset import COCO_PANOPTIC, PNG_TREE, TRAIN, VALID, DataClass
from mask2former.data.own_data.index import index_file
from mask2former.errors import ConfigError
from mask2former.files.json_files import read_json_object

_ANNOTATION_SUFFIXES = (".json", ".yaml", ".yml", ".xml", ".csv")
_IGNORE_LABELS = (255, 65535)  # the first that is no class


def own_names(path: str, classes: Sequence[DataClass]) -> tuple[str, str]:
    """Return names of the training and the validation part; data sets of other classes or paths never share them."""
    stem = re.sub(r"[^\w.-]+", "_", Path(os.path.abspath(path)).stem) or "own"
    identity = repr((os.path.abspath(path), list(classes))).encode()
    digest = hashlib.md5(identity, usedforsecurity=False).hexdigest()[:6]
    return f"{stem}-{digest}_{TRAIN}", f"{stem}-{digest}_{VALID}"


def register_own_data(cfg: CfgNode) -> None:
    """Register what ``DATASETS.OWN`` describes, if anything; nothing is read before it is asked for.

    Raises:
        ConfigError: the keys were edited to something that cannot be.
    """
    own = cfg.DATASETS.OWN
    if not own.CLASSES:
        return
    try:
        classes = [DataClass(int(class_id), str(name), bool(is_thing)) for class_id, name, is_thing in own.CLASSES]
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"DATASETS.OWN.CLASSES: expected [id, name, is thing] entries, found {own.CLASSES}"
        ) from error
    for name, part in zip(own_names(own.PATH, classes), (TRAIN, VALID), strict=True):
        _register_part(name, part, own, classes)


def _register_part(name: str, part: str, own: CfgNode, classes: Sequence[DataClass]) -> None:
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
    if name in MetadataCatalog:
        MetadataCatalog.remove(name)
    index = str(index_file(own.INDEX, part))
    root = str(_root(own.PATH))
    DatasetCatalog.register(name, lambda: _load_part(own.FORMAT, index, root, name))
    # The files were looked at when the index was written.
    MetadataCatalog.get(name).set(**_metadata(own, classes, index, root), files_checked=True)


def _root(path: str) -> Path:
    location = Path(os.path.abspath(os.path.expanduser(path)))
    return location.parent if location.suffix.lower() in _ANNOTATION_SUFFIXES else location


def _load_part(data_format: str, index: str, root: str, name: str) -> list[DatasetDict]:
    if data_format == COCO_PANOPTIC:
        return load_coco_panoptic_json(index, root, root, metadata=name)
    return _load_label_maps(index, root) if data_format == PNG_TREE else load_coco_json(index, root, name)


def _load_label_maps(index: str, root: str) -> list[DatasetDict]:
    content = read_json_object(index, ("images", "annotations"))
    return [
        {
            "file_name": os.path.join(root, image["file_name"]),
            "sem_seg_file_name": os.path.join(root, annotation["file_name"]),
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
        }
        for image, annotation in zip(content["images"], content["annotations"], strict=True)
    ]


def _metadata(own: CfgNode, classes: Sequence[DataClass], index: str, root: str) -> dict[str, Any]:
    train_ids = {entry.id: train_id for train_id, entry in enumerate(classes)}
    things = {entry.id: train_ids[entry.id] for entry in classes if entry.is_thing}
    thing_names = [entry.name for entry in classes if entry.is_thing]
    if own.FORMAT not in (PNG_TREE, COCO_PANOPTIC):
        return {
            "evaluator_type": "coco",
            "thing_classes": thing_names,
            "thing_dataset_id_to_contiguous_id": things,
            "json_file": index,
            "image_root": root,
        }
    ignore_label = next(label for label in _IGNORE_LABELS if label >= len(classes))
    metadata = {
        "stuff_classes": [entry.name for entry in classes],
        "stuff_dataset_id_to_contiguous_id": train_ids,
        "ignore_label": ignore_label,
        "image_root": root,
    }
    if own.FORMAT == PNG_TREE:
        label_ids = {**dict.fromkeys(own.IGNORED_IDS, ignore_label), **train_ids}
        return {**metadata, "evaluator_type": "sem_seg", "label_ids": label_ids}
    return {
        **metadata,
        "evaluator_type": "panoptic_seg" if own.TASK == "panoptic" else "sem_seg",
        "thing_classes": thing_names,
        "thing_dataset_id_to_contiguous_id": things,
        "label_divisor": 1000,
        "panoptic_json": index,
        "panoptic_root": root,
    }
