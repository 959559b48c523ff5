"""COCO instances, COCO panoptic, trees of masks, labelme and the library ``datasets``: recognised, read and written."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mask2former.data.own_data.coco import (
    CocoFile,
    is_partner,
    json_files_below,
    part_of,
    read_coco_instances,
    read_coco_panoptic,
)
from mask2former.data.own_data.dataset import (
    COCO_INSTANCES,
    COCO_PANOPTIC,
    DATASETS,
    LABELME,
    PNG_TREE,
    TRAIN,
    VALID,
    DataClass,
    OwnDataset,
)
from mask2former.data.own_data.datasets_library import is_datasets_folder, write_splits
from mask2former.data.own_data.formats import DataFormat, Parts, register_format
from mask2former.data.own_data.labelme import is_labelme_json, read_labelme
from mask2former.data.own_data.mask_trees import TABLES
from mask2former.data.own_data.png_tree import is_png_tree, read_png_tree
from mask2former.data.own_data.samples import write_coco_instances, write_coco_panoptic, write_labelme, write_png_tree
from mask2former.errors import DatasetError
from mask2former.files.json_files import read_json


@register_format
class PngTree(DataFormat):
    """Images and label maps."""

    name, title, tasks = PNG_TREE, "a tree of images and PNG masks", ("semantic",)
    expected, option, rank = "a folder with train/images and train/masks", "png", 1

    def detect(self, path: Path) -> bool:
        has_table = any((path / name).is_file() for name in TABLES)  # of colours or names: not ids alone
        return is_png_tree(path) and not has_table

    def read(self, path: Path, *, num_workers: int | None = None) -> OwnDataset:
        return read_png_tree(path, num_workers=num_workers)

    def write(self, folder: Path, parts: Parts, classes: Sequence[DataClass]) -> None:
        write_png_tree(folder, parts, classes)


class _CocoFormat(DataFormat):
    rank = 2

    def detect(self, path: Path) -> bool:
        return holds_coco(path, kind=self.name)

    def files(self, path: Path) -> tuple[dict[str, CocoFile], Path]:
        """The JSON file of each part, and the folder of all."""
        return coco_parts(path, kind=self.name, title=self.title)


@register_format
class CocoInstances(_CocoFormat):
    """COCO's JSON of instances."""

    name, title, tasks = COCO_INSTANCES, "COCO instances", ("instance",)
    expected = "a COCO instances json or a folder with one"

    def read(self, path: Path, *, num_workers: int | None = None) -> OwnDataset:
        return read_coco_instances(*self.files(path), num_workers=num_workers)

    def write(self, folder: Path, parts: Parts, classes: Sequence[DataClass]) -> None:
        write_coco_instances(folder, parts, classes)


@register_format
class CocoPanoptic(_CocoFormat):
    """COCO's JSON and PNGs of segments."""

    name, title, tasks = COCO_PANOPTIC, "COCO panoptic", ("panoptic", "semantic")
    expected = "a COCO panoptic json or a folder with one"

    def read(self, path: Path, *, num_workers: int | None = None) -> OwnDataset:
        return read_coco_panoptic(*self.files(path), num_workers=num_workers)

    def write(self, folder: Path, parts: Parts, classes: Sequence[DataClass]) -> None:
        write_coco_panoptic(folder, parts, classes)


@register_format
class Labelme(DataFormat):
    """A JSON file of labelme beside each image."""

    name, title, tasks = LABELME, "a labelme folder", ("instance",)
    expected, rank = "a folder of labelme files", 3

    def detect(self, path: Path) -> bool:
        return holds_labelme(path)

    def read(self, path: Path, *, num_workers: int | None = None) -> OwnDataset:
        if path.is_file():
            raise DatasetError(f"{path} is one labelme file; give the folder that holds all of them")
        return read_labelme(path, num_workers=num_workers)

    def write(self, folder: Path, parts: Parts, classes: Sequence[DataClass]) -> None:
        write_labelme(folder, parts, classes)


@register_format
class DatasetsLibrary(DataFormat):
    """What the library datasets saved, which conversion reads row by row (``conversion.open_samples``)."""

    name, title, tasks = DATASETS, "a data set of the library datasets", ("panoptic", "instance", "semantic")
    expected, rank = "a folder of the library datasets", 4

    def detect(self, path: Path) -> bool:
        return is_datasets_folder(path)

    def read(self, path: Path, *, num_workers: int | None = None) -> OwnDataset:
        raise DatasetError(f"{path}: {self.title}; tools/convert_dataset.py makes files of it")

    def write(self, folder: Path, parts: Parts, classes: Sequence[DataClass]) -> None:
        write_splits(folder, parts, classes)


_NUM_LOOKED_AT = 10


def holds_coco(path: Path, *, kind: str) -> bool:
    """Return whether a JSON file, or one below a folder, is COCO's of this kind.

    Raises:
        DatasetError: a file is no JSON.
    """
    files = [path] if path.is_file() else json_files_below(path)
    return any(coco_file.kind == kind for coco_file in _coco_files(files))


def coco_parts(path: Path, *, kind: str, title: str) -> tuple[dict[str, CocoFile], Path]:
    """Return the file of each part with what it holds, and the folder of the data set.

    ``title`` names the kind in errors.

    A training file brings along the validation file beside it, where that is called the same but for this word.

    Raises:
        DatasetError: files do not say which part they are, or contradict each other.
    """
    try:
        if path.is_dir():
            paths = json_files_below(path)
            found = [coco_file for coco_file in _coco_files(paths) if coco_file.kind == kind]
            return _choose(path, found, paths, title), path
        root = path.parent
        if part_of(path, root) != TRAIN:
            return {TRAIN: _coco_files([path])[0]}, root
        beside = [other for other in sorted(root.glob("*.json")) if is_partner(other, path, root)][:1]
        return _choose(root, _coco_files([path, *beside]), beside, title), root
    finally:
        _read_coco_file.cache_clear()


def holds_labelme(path: Path) -> bool:
    """Return whether a JSON file, or one of the first below a folder, is labelme's.

    Raises:
        DatasetError: a file is no JSON.
    """
    files = [path] if path.is_file() else sorted(path.rglob("*.json"))[:_NUM_LOOKED_AT]
    return any(is_labelme_json(read_json(json_file)) for json_file in files)


def _coco_files(json_files: list[Path]) -> list[CocoFile]:
    stats = [(path, path.stat()) for path in json_files]
    found = [_read_coco_file(path, stat.st_mtime_ns, stat.st_size) for path, stat in stats]
    return [coco_file for coco_file in found if coco_file is not None]


@functools.cache  # until the files are chosen: they may be large, and several formats ask for them
def _read_coco_file(json_file: Path, mtime_ns: int, size: int) -> CocoFile | None:
    content = read_json(json_file)
    kind = _coco_kind(content)
    return None if kind is None else CocoFile(json_file, kind, content)


def _coco_kind(content: Any) -> str | None:
    """``COCO_INSTANCES`` or ``COCO_PANOPTIC``; None for captions, key points, images alone, and what is no COCO."""
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(annotations, list) or not isinstance(content.get("images"), list):
        return None
    first = next((entry for entry in annotations if isinstance(entry, dict)), {})
    if "segments_info" in first:
        return COCO_PANOPTIC
    if "keypoints" in first or "caption" in first or "categories" not in content:
        return None
    return COCO_INSTANCES


def _choose(root: Path, found: list[CocoFile], paths: list[Path], title: str) -> dict[str, CocoFile]:
    """Return the file of each part, of those of one kind among ``paths``.

    A single one may name no part and is for training.

    A file that is the other part by its name alone is refused: without a word the data set would be half of what it is.
    """
    if len(found) == 1 and part_of(found[0].path, root) is None:
        return {TRAIN: found[0]}
    chosen = {}
    for part in (TRAIN, VALID):
        files = [coco_file for coco_file in found if part_of(coco_file.path, root) == part]
        if len(files) > 1:
            raise DatasetError(f"{root}: several {part} files of {title}: {_names(root, files)}; give the path of one")
        if files:
            chosen[part] = files[0]
    if TRAIN not in chosen:
        others = [path for path in paths if part_of(path, root) == TRAIN]
        note = f"; {', '.join(map(str, others))}: no {title}" if others else ""
        raise DatasetError(
            f"{root}: which file is for training? {title} are in {_names(root, found)} alone; its name must say train, "
            f"or give its path{note}"
        )
    partner = next((path for path in paths if is_partner(path, chosen[TRAIN].path, root)), None)
    if partner is not None and VALID not in chosen:
        raise DatasetError(f"{partner}: called as the validation part of {chosen[TRAIN].path}, but no {title}")
    return chosen


def _names(root: Path, files: list[CocoFile]) -> str:
    return ", ".join(str(coco_file.path.relative_to(root)) for coco_file in files)
