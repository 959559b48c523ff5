"""The data sets that published configs name: paths below the dataset root and class tables, in ``builtin.json``."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from mask2former.data.catalog import DatasetCatalog, MetadataCatalog, dataset_root
from mask2former.data.datasets.coco import register_coco_instances
from mask2former.data.datasets.coco_panoptic import register_coco_panoptic
from mask2former.data.datasets.sem_seg import register_sem_seg
from mask2former.data.datasets.shapes import register_shapes_datasets

_PATH_KEYS = ("image_root", "image_dir", "gt_dir", "json_file", "panoptic_root", "panoptic_json", "sem_seg_root")


@dataclass
class _Registered:
    root: Path | None = None
    names: set[str] = field(default_factory=set)


_registered = _Registered()


@functools.cache
def _tables() -> dict[str, Any]:
    return json.loads(resources.files(__package__).joinpath("builtin.json").read_text(encoding="utf-8"))


def register_builtin_datasets(root: str | Path | None = None) -> None:
    """Register every built-in data set that is not registered yet, below ``root`` (``dataset_root()``).

    Reads nothing but the table of names. Data sets in a format without a loader get their metadata only. Called
    again with another root, the names move there; what somebody else registered stays.
    """
    folder = (dataset_root() if root is None else Path(root)).absolute()
    if _registered.root != folder:
        for name in _registered.names:
            if name in DatasetCatalog:
                DatasetCatalog.remove(name)
            if name in MetadataCatalog:
                MetadataCatalog.remove(name)
        _registered.names.clear()
    before = set(MetadataCatalog.list())
    for name, entry in _tables()["datasets"].items():
        if name not in DatasetCatalog and MetadataCatalog.get(name).get("evaluator_type") is None:
            _register(name, entry, folder)
    register_shapes_datasets(folder)
    _registered.root = folder
    _registered.names |= set(MetadataCatalog.list()) - before


def _register(name: str, entry: dict[str, Any], root: Path) -> None:
    paths = {key: str(root / entry[key]) for key in _PATH_KEYS if key in entry}
    metadata = {k: v for k, v in entry.items() if k not in (*_PATH_KEYS, "taxonomy", "gt_ext")}
    metadata |= _taxonomy(entry["taxonomy"])
    if name.startswith(("cityscapes", "ytvis")):
        MetadataCatalog.get(name).set(**metadata, **paths)
    elif "panoptic_json" in paths:
        register_coco_panoptic(
            name,
            metadata,
            paths["image_root"],
            paths["panoptic_root"],
            paths["panoptic_json"],
            paths.get("sem_seg_root"),
            paths.get("json_file"),
        )
    elif "json_file" in paths:
        register_coco_instances(name, metadata, paths["json_file"], paths["image_root"])
    else:
        register_sem_seg(name, metadata, paths["image_root"], paths["sem_seg_root"], gt_ext=entry.get("gt_ext", "png"))


@functools.cache
def _taxonomy(name: str) -> dict[str, Any]:
    table = dict(_tables()["taxonomies"][name])
    for key in ("thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id"):
        if key in table:
            # JSON has text keys only.
            table[key] = {int(dataset_id): contiguous for dataset_id, contiguous in table[key].items()}
    return table
