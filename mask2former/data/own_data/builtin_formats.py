"""The formats of own data that come with the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mask2former.data.own_data import detect, exporting
from mask2former.data.own_data.coco_files import CocoFile
from mask2former.data.own_data.coco_instances import read_coco_instances
from mask2former.data.own_data.coco_panoptic import read_coco_panoptic
from mask2former.data.own_data.dataset import (
    COCO_INSTANCES,
    COCO_PANOPTIC,
    DATASETS,
    LABELME,
    PNG_TREE,
    DataClass,
    OwnDataset,
)
from mask2former.data.own_data.datasets_library import is_datasets_folder, write_splits
from mask2former.data.own_data.formats import DataFormat, Parts, register_format
from mask2former.data.own_data.labelme import read_labelme
from mask2former.data.own_data.mask_trees import TABLES
from mask2former.data.own_data.png_tree import is_png_tree, read_png_tree
from mask2former.errors import DatasetError


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
        exporting.write_png_tree(folder, parts, classes)


class _CocoFormat(DataFormat):
    rank = 2

    def detect(self, path: Path) -> bool:
        return detect.holds_coco(path, kind=self.name)

    def files(self, path: Path) -> tuple[dict[str, CocoFile], Path]:
        """The JSON file of each part, and the folder of all."""
        return detect.coco_parts(path, kind=self.name, title=self.title)


@register_format
class CocoInstances(_CocoFormat):
    """COCO's JSON of instances."""

    name, title, tasks = COCO_INSTANCES, "COCO instances", ("instance",)
    expected = "a COCO instances json or a folder with one"

    def read(self, path: Path, *, num_workers: int | None = None) -> OwnDataset:
        return read_coco_instances(*self.files(path), num_workers=num_workers)

    def write(self, folder: Path, parts: Parts, classes: Sequence[DataClass]) -> None:
        exporting.write_coco_instances(folder, parts, classes)


@register_format
class CocoPanoptic(_CocoFormat):
    """COCO's JSON and PNGs of segments."""

    name, title, tasks = COCO_PANOPTIC, "COCO panoptic", ("panoptic", "semantic")
    expected = "a COCO panoptic json or a folder with one"

    def read(self, path: Path, *, num_workers: int | None = None) -> OwnDataset:
        return read_coco_panoptic(*self.files(path), num_workers=num_workers)

    def write(self, folder: Path, parts: Parts, classes: Sequence[DataClass]) -> None:
        exporting.write_coco_panoptic(folder, parts, classes)


@register_format
class Labelme(DataFormat):
    """A JSON file of labelme beside each image."""

    name, title, tasks = LABELME, "a labelme folder", ("instance",)
    expected, rank = "a folder of labelme files", 3

    def detect(self, path: Path) -> bool:
        return detect.holds_labelme(path)

    def read(self, path: Path, *, num_workers: int | None = None) -> OwnDataset:
        if path.is_file():
            raise DatasetError(f"{path} is one labelme file; give the folder that holds all of them")
        return read_labelme(path, num_workers=num_workers)

    def write(self, folder: Path, parts: Parts, classes: Sequence[DataClass]) -> None:
        exporting.write_labelme(folder, parts, classes)


@register_format
class DatasetsLibrary(DataFormat):
    """What the library datasets saved, which conversion reads row by row (`conversion.open_samples`)."""

    name, title, tasks = DATASETS, "a data set of the library datasets", ("panoptic", "instance", "semantic")
    expected, rank = "a folder of the library datasets", 4

    def detect(self, path: Path) -> bool:
        return is_datasets_folder(path)

    def read(self, path: Path, *, num_workers: int | None = None) -> OwnDataset:
        raise DatasetError(f"{path}: {self.title}; tools/convert_dataset.py makes files of it")

    def write(self, folder: Path, parts: Parts, classes: Sequence[DataClass]) -> None:
        write_splits(folder, parts, classes)
