"""Exports of labelling tools: read as meant, trained from, written and read back, refused with reasons."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mask2former.commands.cli import main
from mask2former.config import get_cfg
from mask2former.data import DatasetCatalog, MetadataCatalog
from mask2former.data.mapper import DatasetMapper
from mask2former.data.own_data import (
    OwnDataset,
    convert_own_data,
    format_named,
    hold_out,
    own_names,
    read_own_data,
    register_own_data,
    segment_masks,
    training_classes,
    write_index,
)
from mask2former.errors import DatasetError
from tests.data_pipeline import own_data_trees as trees
from tests.data_pipeline import tool_trees as tools

WRITTEN = sorted({name for _, name in tools.LAYOUTS.values()})


def objects_of(dataset: OwnDataset) -> list[list[tuple[str, bytes]]]:
    """Class and pixels of the objects of every image."""
    names = {entry.id: entry.name for entry in dataset.classes}
    found = []
    for image in dataset.images():
        masks = segment_masks(image)
        segments = zip(image.segments, masks, strict=True)
        found.append(sorted((names[segment.class_id], mask.tobytes()) for segment, mask in segments))
    return found


EXPECTED = sorted((name, mask.tobytes()) for name, mask in tools.OBJECTS)


@pytest.mark.parametrize("layout", tools.LAYOUTS)
def test_layout_of_a_tool_is_read_and_maps_to_training_samples(layout: str, tmp_path: Path) -> None:
    make, name = tools.LAYOUTS[layout]
    path = make(tmp_path / "data")
    dataset = read_own_data(path)
    assert dataset.format == name
    assert objects_of(dataset) == [EXPECTED] * 3
    hold_out(dataset)
    assert sorted(map(len, dataset.parts.values())) == [1, 2]
    assert dataset.root == (path.parent if path.is_file() else path)  # where a run looks for its files

    cfg = get_cfg()
    own, classes = cfg.DATASETS.OWN, training_classes(dataset)
    own.PATH, own.INDEX, own.FORMAT = str(path), str(tmp_path / "index"), format_named(name).index_form
    own.TASK, own.CLASSES = "instance", [[entry.id, entry.name, entry.is_thing] for entry in classes]
    cfg.INPUT.DATASET_MAPPER_NAME, cfg.INPUT.IMAGE_SIZE = "coco_instance_lsj", 32
    write_index(dataset, classes, Path(own.INDEX))
    register_own_data(cfg)
    train, valid = own_names(own.PATH, classes)
    records = DatasetCatalog.get(train)
    sample = DatasetMapper.from_config(cfg)(records[0], np.random.default_rng(0))
    assert len(records) == 2
    assert len(DatasetCatalog.get(valid)) == 1
    assert set(MetadataCatalog.get(train).thing_classes) >= set(tools.NAMES)
    assert sample["image"].shape[-2:] == sample["instances"].gt_masks.shape[-2:]
    assert len(sample["instances"]) > 0


@pytest.mark.parametrize("name", WRITTEN)
def test_format_of_a_tool_is_written_and_read_back(name: str, tmp_path: Path) -> None:
    source = tools.yolo_ultralytics(tmp_path / "source")
    convert_own_data(source, tmp_path / "written", target=name)
    back = read_own_data(tmp_path / "written")
    assert back.format == name
    assert objects_of(back) == [EXPECTED] * 3
    assert {part: len(images) for part, images in back.parts.items()} == {"train": 2, "valid": 1}


def spoil_yolo(root: Path) -> Path:
    path = tools.yolo_ultralytics(root)
    (root / "labels/train/0.txt").write_text("0 .1 .1 .4 .1 .4 .4\n5 .1 .1 .4 .1 .4 .4\n0 .1 .1 .2 .2\n")
    (root / "labels/train/1.txt").write_text("1 .1 .1 .4 .1 .4\n1 10 10 40 10 40 40\n")
    (root / "labels/val/2.txt").write_text("0 a b c\n")
    return path


def spoil_yolo_detection(root: Path) -> Path:
    path = tools.yolo_roboflow(root)
    for file in root.rglob("*.txt"):
        file.write_text("0 0.5 0.5 0.2 0.2\n1 0.4 0.4 0.1 0.1\n")
    return path


def spoil_supervisely(root: Path) -> Path:
    path = tools.supervisely(root)

    def change(content: dict) -> None:
        content["objects"][0]["classTitle"] = "horse"
        content["objects"][1]["points"] = {"interior": []}

    tools.edit_json(root / "train/ann/0.jpg.json", change)
    tools.edit_json(root / "train/ann/1.jpg.json", lambda c: c["objects"][0]["bitmap"].update(data="AAAA"))
    return path


WRONG: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "yolo": (
        spoil_yolo,
        ("0.txt: 2 faults", "line 2: class 5 has no name", "line 3: is a box", "1.txt: 2 faults",
         "at least three points",
         "line 2: coordinates are shares of width and height in 0..1, found 10"),
    ),
    "yolo detection": (spoil_yolo_detection, ("looks like YOLO detection", "five numbers a line have no masks")),
    "supervisely": (
        spoil_supervisely,
        ("0.jpg.json: 2 faults", "object 0: class 'horse' is not in meta.json", "object 1: missing 'exterior'",
         "1.jpg.json: object 0: 'data' must be a PNG"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_export_is_refused_with_all_its_faults_in_one_message(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, expected = WRONG[case]
    path = spoil(tmp_path / "data")
    with pytest.raises(DatasetError) as refused:
        read_own_data(path)
    for words in expected:
        assert words in str(refused.value)
    assert main(["convert-dataset", str(path), str(tmp_path / "out"), "--to", "coco-instances"]) == 1
    error = capsys.readouterr().err
    assert expected[0] in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_images_without_a_label_file_hold_no_object_which_is_said(tmp_path: Path) -> None:
    path = tools.yolo_ultralytics(tmp_path)
    (tmp_path / "labels/train/1.txt").unlink()
    trees.write_image(tmp_path / "images/val/3.png")
    (tmp_path / "labels/val/3.txt").write_text("")
    dataset = read_own_data(path)
    assert [len(image.segments) for image in dataset.images()] == [3, 0, 3, 0]
    assert any("1 of 2 train images have no label file" in note for note in dataset.notes)
    assert np.array_equal(segment_masks(dataset.parts["train"][0])[0], tools.CAT_MASK)
