"""The data sets that published configs name, below one root; ``tables/`` describes them."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mask2former.data.catalog import DatasetCatalog, DatasetDict, MetadataCatalog, dataset_root
from mask2former.data.datasets.cityscapes import (
    load_cityscapes_instances,
    load_cityscapes_panoptic,
    load_cityscapes_sem_seg,
)
from mask2former.data.datasets.classes import read_table, taxonomy_metadata
from mask2former.data.datasets.coco import load_coco_json, load_sem_seg
from mask2former.data.datasets.coco_panoptic import load_coco_panoptic_json, load_coco_panoptic_separated
from mask2former.data.datasets.shapes import register_shapes_datasets
from mask2former.data.datasets.ytvis import load_ytvis_json
from mask2former.errors import DatasetError
from mask2former.files.json_files import root_note

_PATH_KEYS = (
    *("panoptic_json", "json_file", "panoptic_root", "sem_seg_root", "gt_dir"),
    *("image_root", "image_dir"),
)


@dataclass(frozen=True)
class _Format:
    """``load`` takes the data set's name and the paths in ``reads``, then the entry's options by name."""

    load: Callable[..., list[DatasetDict]]
    reads: tuple[str, ...]


def _load_instances(name: str, json_file: str, image_root: str, *, annotated: bool = True) -> list[DatasetDict]:
    return load_coco_json(json_file, image_root, name, annotated=annotated)


def _load_panoptic(
    name: str, panoptic_json: str, panoptic_root: str, sem_seg_root: str | None, image_root: str
) -> list[DatasetDict]:
    return load_coco_panoptic_json(panoptic_json, image_root, panoptic_root, sem_seg_root=sem_seg_root, metadata=name)


def _load_separated(name: str, json_file: str, sem_seg_root: str, image_root: str) -> list[DatasetDict]:
    return load_coco_panoptic_separated(json_file, image_root, sem_seg_root, name)


def _load_sem_seg(name: str, sem_seg_root: str, image_root: str, *, gt_ext: str = "png") -> list[DatasetDict]:
    return load_sem_seg(sem_seg_root, image_root, gt_ext=gt_ext)


def _load_cityscapes_sem_seg(name: str, gt_dir: str, image_dir: str) -> list[DatasetDict]:
    return load_cityscapes_sem_seg(image_dir, gt_dir)


def _load_cityscapes_instances(name: str, gt_dir: str, image_dir: str) -> list[DatasetDict]:
    return load_cityscapes_instances(image_dir, gt_dir)


def _load_cityscapes_panoptic(
    name: str, panoptic_json: str, panoptic_root: str, gt_dir: str, image_root: str
) -> list[DatasetDict]:
    return load_cityscapes_panoptic(panoptic_json, image_root, panoptic_root, gt_dir=gt_dir, metadata=name)


def _load_ytvis(name: str, json_file: str, image_root: str, *, annotated: bool = True) -> list[DatasetDict]:
    return load_ytvis_json(json_file, image_root, name, annotated=annotated)


# Annotations come before images in what is read: where both are missing, the error names the annotations.
_FORMATS: Mapping[str, _Format] = MappingProxyType(
    {
        "coco_instances": _Format(_load_instances, ("json_file", "image_root")),
        "coco_panoptic": _Format(_load_panoptic, ("panoptic_json", "panoptic_root", "sem_seg_root", "image_root")),
        "coco_panoptic_separated": _Format(_load_separated, ("json_file", "sem_seg_root", "image_root")),
        "sem_seg": _Format(_load_sem_seg, ("sem_seg_root", "image_root")),
        "cityscapes_sem_seg": _Format(_load_cityscapes_sem_seg, ("gt_dir", "image_dir")),
        "cityscapes_instance": _Format(_load_cityscapes_instances, ("gt_dir", "image_dir")),
        "cityscapes_panoptic": _Format(
            _load_cityscapes_panoptic, ("panoptic_json", "panoptic_root", "gt_dir", "image_root")
        ),
        "ytvis": _Format(_load_ytvis, ("json_file", "image_root")),
    }
)


@dataclass
class _Registered:
    root: Path | None = None
    default: Path | None = None  # dataset_root() at that time
    names: set[str] = field(default_factory=set)


_registered = _Registered()


def register_builtin_datasets(root: str | Path | None = None) -> None:
    """Register every built-in data set that is not registered yet, below ``root``.

    ``root`` is by default ``dataset_root()``. A root that was given once stays in use until the environment names
    another, so that loading a data set, which calls this too, does not move it. Called with another root, the built-in
    names move there; names registered by others stay. Reads only the class tables.
    """
    default = dataset_root().absolute()
    if root is not None:
        folder = Path(root).absolute()
    else:
        folder = _registered.root if _registered.root is not None and _registered.default == default else default
    if _registered.root != folder:
        for name in _registered.names:
            if name in DatasetCatalog:
                DatasetCatalog.remove(name)
            if name in MetadataCatalog:
                MetadataCatalog.remove(name)
        _registered.names.clear()
    before = set(MetadataCatalog.list())
    for name, entry in read_table("datasets").items():
        if name not in DatasetCatalog and MetadataCatalog.get(name).get("evaluator_type") is None:
            _register(name, entry, folder)
    register_shapes_datasets(folder)
    _registered.root, _registered.default = folder, default
    _registered.names |= set(MetadataCatalog.list()) - before


def _register(name: str, entry: dict[str, Any], root: Path) -> None:
    # Not joined by Path: the published folders of Cityscapes end in a slash.
    facts = {k: f"{root}/{v}" if k in _PATH_KEYS and v is not None else v for k, v in entry["metadata"].items()}
    MetadataCatalog.get(name).set(**taxonomy_metadata(entry["classes"]), **facts)
    DatasetCatalog.register(name, partial(_load, name, entry, root))


def _load(name: str, entry: dict[str, Any], root: Path) -> list[DatasetDict]:
    options = dict(entry.get("options", {}))
    places = entry["metadata"] | {key: options.pop(key) for key in _PATH_KEYS if key in options}
    data_format = _FORMATS[entry["format"]]
    paths = []
    for key in data_format.reads:
        place = places.get(key)
        if place is not None:
            _check_there(root, place)
        paths.append(None if place is None else str(root / place))
    return data_format.load(name, *paths, **options)


def _check_there(root: Path, place: str) -> None:
    path = root / place
    if path.is_file() or (path.is_dir() and next(os.scandir(path), None) is not None):
        return
    state = "is empty" if path.is_dir() else "not found"
    raise DatasetError(f"{path} {state} {root_note()}; {provision_of(place)}")


def provision_of(place: str) -> str:
    """Return a sentence for an error that says where the files at ``place``, below the dataset root, come from."""
    for pattern, provision in read_table("provisions").items():
        if fnmatch.fnmatch(place, pattern):
            return provision
    return "datasets/README.md shows what belongs there"


DatasetCatalog.call_before_search(register_builtin_datasets)
