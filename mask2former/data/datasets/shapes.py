"""The shapes data sets by name: panoptic, instances, semantic and videos, each with its train and val split."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mask2former.data.catalog import DatasetCatalog, DatasetDict, MetadataCatalog, dataset_root
from mask2former.data.datasets.coco import load_coco_json, load_sem_seg
from mask2former.data.datasets.coco_panoptic import load_coco_panoptic_json
from mask2former.data.datasets.ytvis import load_ytvis_json
from mask2former.data.shapes.classes import shape_classes, thing_classes
from mask2former.errors import DatasetError

SPLITS = ("train", "val")


def register_shapes_datasets(root: Path | None = None) -> None:
    """Register shapes_{panoptic,instance,sem_seg,video}_{train,val} below ``root``, unless already registered.

    ``root`` is by default ``dataset_root()``. Nothing is read from it before a data set is asked for.
    """
    folder = (dataset_root() if root is None else Path(root)) / "shapes"
    for split in SPLITS:
        for kind, register in _REGISTER.items():
            name = f"shapes_{kind}_{split}"
            if name not in DatasetCatalog and MetadataCatalog.get(name).get("evaluator_type") is None:
                register(name, folder, split)


def thing_metadata() -> dict[str, Any]:
    """Return names, colours and ids of things only."""
    things = thing_classes()
    return {
        "thing_classes": [c.name for c in things],
        "thing_colors": [list(c.color) for c in things],
        "thing_dataset_id_to_contiguous_id": {c.category_id: c.contiguous_id for c in things},
    }


def all_metadata() -> dict[str, Any]:
    """Return names, colours and ids of things and of all classes; the latter in fields called stuff_…."""
    classes = shape_classes()
    return {
        **thing_metadata(),
        "stuff_classes": [c.name for c in classes],
        "stuff_colors": [list(c.color) for c in classes],
        "stuff_dataset_id_to_contiguous_id": {c.category_id: c.contiguous_id for c in classes},
        "ignore_label": 255,
    }


def _register_panoptic(name: str, folder: Path, split: str) -> None:
    paths = {
        "panoptic_json": str(folder / "annotations" / f"panoptic_{split}.json"),
        "image_root": str(folder / split),
        "panoptic_root": str(folder / f"panoptic_{split}"),
        "sem_seg_root": str(folder / f"sem_seg_{split}"),
        "json_file": str(folder / "annotations" / f"instances_{split}.json"),
    }
    load = partial(
        load_coco_panoptic_json,
        paths["panoptic_json"],
        paths["image_root"],
        paths["panoptic_root"],
        sem_seg_root=paths["sem_seg_root"],
        metadata=name,
    )
    DatasetCatalog.register(name, partial(_load_prepared, folder, load))
    MetadataCatalog.get(name).set(evaluator_type="coco_panoptic_seg", label_divisor=1000, **all_metadata(), **paths)


def _register_instance(name: str, folder: Path, split: str) -> None:
    paths = {
        "json_file": str(folder / "annotations" / f"instances_{split}.json"),
        "image_root": str(folder / split),
    }
    load = partial(load_coco_json, paths["json_file"], paths["image_root"], name)
    DatasetCatalog.register(name, partial(_load_prepared, folder, load))
    MetadataCatalog.get(name).set(evaluator_type="coco", **thing_metadata(), **paths)


def _register_sem_seg(name: str, folder: Path, split: str) -> None:
    paths = {"sem_seg_root": str(folder / f"sem_seg_{split}"), "image_root": str(folder / split)}
    load = partial(load_sem_seg, paths["sem_seg_root"], paths["image_root"])
    DatasetCatalog.register(name, partial(_load_prepared, folder, load))
    classes = shape_classes()
    MetadataCatalog.get(name).set(
        evaluator_type="sem_seg",
        stuff_classes=[c.name for c in classes],
        stuff_colors=[list(c.color) for c in classes],
        ignore_label=255,
        **paths,
    )


def _register_video(name: str, folder: Path, split: str) -> None:
    paths = {
        "json_file": str(folder / "annotations" / f"video_{split}.json"),
        "image_root": str(folder / f"video_{split}" / "JPEGImages"),
    }
    load = partial(load_ytvis_json, paths["json_file"], paths["image_root"], name)
    DatasetCatalog.register(name, partial(_load_prepared, folder, load))
    MetadataCatalog.get(name).set(evaluator_type="ytvis", **thing_metadata(), **paths)


_REGISTER: dict[str, Callable[[str, Path, str], None]] = {
    "panoptic": _register_panoptic,
    "instance": _register_instance,
    "sem_seg": _register_sem_seg,
    "video": _register_video,
}


def _load_prepared(folder: Path, load: Callable[[], list[DatasetDict]]) -> list[DatasetDict]:
    if not (folder / "manifest.json").is_file():
        state = "is not complete" if folder.is_dir() else "does not exist"
        raise DatasetError(f"the shapes data set {folder} {state}; draw it with: python datasets/prepare_shapes.py")
    return load()
