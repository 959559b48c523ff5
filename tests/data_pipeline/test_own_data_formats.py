"""A format of own data from outside is read, trained from, and written like ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mask2former.config import get_cfg
from mask2former.data import DatasetCatalog
from mask2former.data.own_data import (
    FORMAT_REGISTRY,
    DataClass,
    DataFormat,
    ImageEntry,
    OwnDataset,
    Segment,
    all_formats,
    convert_own_data,
    format_named,
    own_names,
    read_own_data,
    register_format,
    register_own_data,
    write_index,
)
from mask2former.data.own_data.formats import Parts
from mask2former.errors import ConfigError, DatasetError
from mask2former.files.images import read_image_size
from tests.data_pipeline import own_data_trees as trees


class BoxList(DataFormat):
    """``boxes.txt``: a line ``file x y width height`` for each object of the one class."""

    name, title, tasks = "box_list", "a list of boxes", ("instance",)

    def detect(self, path: Path) -> bool:
        return (path / "boxes.txt").is_file()

    def read(self, path: Path, *, num_workers: int | None = None) -> OwnDataset:
        images = []
        for number, line in enumerate((path / "boxes.txt").read_text().splitlines()):
            file, *numbers = line.split()
            x, y, width, height = map(float, numbers)
            polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
            size = read_image_size(path / file)
            images.append(ImageEntry(path / file, *size, number, (Segment(3, [polygon], instance_id=1),)))
        return OwnDataset(self.name, path, [DataClass(3, "box", is_thing=True)], {"train": images})


class WritableBoxList(BoxList):
    name = "writable_box_list"

    def write(self, folder: Path, parts: Parts, classes: Sequence[DataClass]) -> None:
        names = [sample.name for samples in parts.values() for sample in samples]
        (folder / "boxes.txt").write_text("\n".join(f"{name} 0 0 1 1" for name in names))


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(FORMAT_REGISTRY, "_obj_map", dict(FORMAT_REGISTRY._obj_map))
    return


def write_boxes(root: Path) -> Path:
    """Beside data that our own formats would take."""
    trees.write_png_tree(root, num_train=2)
    names = sorted(file.name for file in (root / "train/images").iterdir())
    (root / "boxes.txt").write_text("".join(f"train/images/{name} 4 2 10 6\n" for name in names))
    return root


def test_format_from_outside_is_asked_before_ours(tmp_path: Path) -> None:
    root = write_boxes(tmp_path / "data")
    assert read_own_data(root).format == "png_tree"
    register_format(BoxList)
    dataset = read_own_data(root)
    assert dataset.format == "box_list"
    assert BoxList().index_form == "coco_instances"
    assert len(dataset.parts["train"]) == 2


def test_format_from_outside_is_registered_for_training(tmp_path: Path) -> None:
    register_format(BoxList)
    dataset = read_own_data(write_boxes(tmp_path / "data"))
    write_index(dataset, dataset.classes, tmp_path / "index")
    cfg = get_cfg()
    cfg.DATASETS.OWN.update(
        PATH=str(tmp_path / "data"),
        INDEX=str(tmp_path / "index"),
        FORMAT=format_named("box_list").index_form,
        TASK="instance",
        CLASSES=[[3, "box", True]],
    )
    register_own_data(cfg)
    name, _ = own_names(cfg.DATASETS.OWN.PATH, dataset.classes)
    (annotation,) = DatasetCatalog.get(name)[0]["annotations"]
    assert annotation["bbox"] == [4, 2, 10, 6]
    assert annotation["category_id"] == 0
    DatasetCatalog.remove(name)


def test_format_is_written_where_it_can_be(tmp_path: Path) -> None:
    register_format(BoxList)
    register_format(WritableBoxList)
    root = trees.write_coco_instances(tmp_path / "coco")
    convert_own_data(root, tmp_path / "out", target="writable_box_list")
    assert (tmp_path / "out/boxes.txt").read_text().count(" 0 0 1 1") == len(list(read_own_data(root).images()))
    with pytest.raises(DatasetError, match="a list of boxes: can be read, not written"):
        convert_own_data(root, tmp_path / "other", target="box_list")
    assert not (tmp_path / "other").exists()


def test_unknown_format_is_refused_with_the_known_ones() -> None:
    options = {data_format.option for data_format in all_formats()}
    tools = {"cvat", "label-studio", "mask-tree", "supervisely", "via", "voc", "voc-semantic", "yolo"}
    assert options == {"png", "coco-instances", "coco-panoptic", "labelme", "datasets", *tools}
    with pytest.raises(
        ConfigError, match=r"expected one of .*labelme.*; found 'label_me'; did you mean labelme or label_studio\?"
    ):
        format_named("label_me")
