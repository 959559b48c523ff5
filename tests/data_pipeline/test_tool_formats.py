"""Exports of labelling tools: read as meant, trained from, written and read back, refused with reasons."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mask2former.commands.cli import main
from mask2former.config import CfgNode, get_cfg
from mask2former.data import DatasetCatalog, MetadataCatalog
from mask2former.data.mapper import DatasetMapper
from mask2former.data.own_data import (
    OwnDataset,
    convert_own_data,
    detect_format,
    format_named,
    hold_out,
    parse_ignored,
    read_class_names,
    read_own_data,
    register_own_data,
    segment_masks,
    training_classes,
)
from mask2former.engine.own_data import OwnDataRequest, resolve_own_data
from mask2former.errors import DatasetError
from tests.data_pipeline import more_layouts as more
from tests.data_pipeline import own_data_trees as trees
from tests.data_pipeline import tool_trees as tools

PNG_MASKS = ("PNG masks", "PNG masks, palettes", "arrays and PNG masks")
LAYOUTS = {**tools.LAYOUTS, **more.INSTANCE_LAYOUTS}
SEMANTIC_LAYOUTS = {**tools.SEMANTIC_LAYOUTS, **more.SEMANTIC_LAYOUTS}
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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_a_tool_is_read_and_maps_to_training_samples(layout: str, tmp_path: Path) -> None:
    make, name = LAYOUTS[layout]
    path = make(tmp_path / "data")
    dataset = read_own_data(path)
    assert dataset.format == name
    assert objects_of(dataset) == [EXPECTED] * 3
    hold_out(dataset)
    assert sorted(map(len, dataset.parts.values())) == [1, 2]
    has_box = name in ("cvat", "label_studio")
    assert any("have no mask" in note or "has no mask" in note for note in dataset.notes) == has_box
    assert dataset.root == (path.parent if path.is_file() else path)  # where a run looks for its files

    cfg, _ = trained(path, "instance", tmp_path)
    (train,), (valid,) = cfg.DATASETS.TRAIN, cfg.DATASETS.TEST
    records = DatasetCatalog.get(train)
    sample = DatasetMapper.from_config(cfg)(records[0], np.random.default_rng(0))
    assert len(records) == 2
    assert len(DatasetCatalog.get(valid)) == 1
    assert set(MetadataCatalog.get(train).thing_classes) >= set(tools.NAMES)
    assert sample["image"].shape[-2:] == sample["instances"].gt_masks.shape[-2:]
    assert len(sample["instances"]) > 0


def trained(path: Path, task: str, tmp_path: Path) -> tuple[CfgNode, OwnDataset]:
    """The config of a run on the data, its index written and its parts registered; and the data."""
    cfg = get_cfg()
    mapper = {"instance": "coco_instance_lsj", "semantic": "mask_former_semantic"}[task]
    cfg.INPUT.DATASET_MAPPER_NAME, cfg.OUTPUT_DIR, cfg.INPUT.IMAGE_SIZE = mapper, str(tmp_path / "out"), 32
    resolved = resolve_own_data(cfg, OwnDataRequest(str(path), cfg))
    register_own_data(resolved)
    return resolved, read_own_data(path, task=task)


@pytest.mark.parametrize("layout", SEMANTIC_LAYOUTS)
def test_label_maps_of_a_layout_are_read_and_train(layout: str, tmp_path: Path) -> None:
    make, name = SEMANTIC_LAYOUTS[layout]
    cfg, dataset = trained(make(tmp_path / "data"), "semantic", tmp_path)
    assert dataset.format == name
    names = {entry.id: entry.name for entry in dataset.classes}
    if layout in ("images and masks", *PNG_MASKS):  # no table: ids are the names
        assert names == {0: "class_0", 1: "class_1", 2: "class_2"}
        names = dict(enumerate(("background", *tools.NAMES)))
    expected = tools.label_map()
    for image in dataset.images():
        masks = segment_masks(image)
        for segment, mask in zip(image.segments, masks, strict=True):
            if segment.class_id not in dataset.void_ids and names[segment.class_id] in tools.NAMES:
                np.testing.assert_array_equal(mask, expected == 1 + tools.NAMES.index(names[segment.class_id]))
    record = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])[0]
    sample = DatasetMapper.from_config(cfg)(record, np.random.default_rng(0))
    found = {names[cfg.DATASETS.OWN.CLASSES[i][0]] for i in sample["instances"].gt_classes.tolist()}
    assert "dog" in found
    assert ("background" in found) == (0 not in dataset.void_ids)


@pytest.mark.parametrize("layout", more.PANOPTIC_LAYOUTS)
def test_panoptic_layout_is_read_and_trains(layout: str, tmp_path: Path) -> None:
    make, name = more.PANOPTIC_LAYOUTS[layout]
    path = make(tmp_path / "data")
    assert detect_format(path, task="panoptic").name == name
    cfg = get_cfg()
    cfg.INPUT.DATASET_MAPPER_NAME, cfg.OUTPUT_DIR, cfg.INPUT.IMAGE_SIZE = "coco_panoptic_lsj", str(tmp_path / "out"), 32
    cfg = resolve_own_data(cfg, OwnDataRequest(str(path), cfg))
    register_own_data(cfg)
    assert sorted(name for _, name, _ in cfg.DATASETS.OWN.CLASSES) == ["box", "disc", "sky"]
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        assert len(DatasetCatalog.get(name)) == 2
    sample = DatasetMapper.from_config(cfg)(DatasetCatalog.get(cfg.DATASETS.TRAIN[0])[0], np.random.default_rng(0))
    assert len(sample["instances"]) > 0


@pytest.mark.parametrize("name", sorted({name for _, name in tools.SEMANTIC_LAYOUTS.values()}))
def test_label_maps_are_written_and_read_back(name: str, tmp_path: Path) -> None:
    source = tools.voc(tmp_path / "source")
    convert_own_data(source, tmp_path / "written", target=name, preferred="voc_semantic")
    back = read_own_data(tmp_path / "written", task="semantic")
    assert back.format == name
    names = {entry.id: entry.name for entry in back.classes}
    if name == "mask_tree":
        names = {
            c.id: c.name
            for c in training_classes(
                back, read_class_names(tmp_path / "written/classes.txt"), ignored=parse_ignored(None, back)
            )
        }
    for image in back.images():
        found = {names.get(s.class_id): m for s, m in zip(image.segments, segment_masks(image), strict=True)}
        for number, class_name in enumerate(tools.NAMES, start=1):
            np.testing.assert_array_equal(found[class_name], tools.label_map() == number)


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


def spoil_voc(root: Path) -> Path:
    path = tools.cvat_masks(root)
    classes = tools.in_colours(tools.label_map())
    classes[0, 0] = (1, 2, 3)
    trees.write_mask(root / "SegmentationClass/0.png", classes)
    numbers = tools.object_map()
    numbers[0, :3] = 3
    trees.write_mask(root / "SegmentationObject/1.png", tools.in_colours(numbers))
    return path


def spoil_voc_files(root: Path) -> Path:
    path = tools.voc(root)
    (root / "VOCdevkit/VOC2012/JPEGImages/1.jpg").unlink()
    (root / "VOCdevkit/VOC2012/SegmentationObject/2.png").unlink()
    return path


def spoil_cvat(root: Path) -> Path:
    path = tools.cvat_xml(root)
    text = (root / "annotations.xml").read_text()
    text = (
        text.replace('label="cat"', 'label="horse"', 1)
        .replace('rle="', 'rle="5, ', 2)
        .replace("28.00,3.00", "28.00", 1)
    )
    (root / "annotations.xml").write_text(text)
    (root / "images/2.jpg").unlink()
    return path


def spoil_label_studio(root: Path) -> Path:
    path = tools.label_studio(root)

    def change(tasks: list) -> None:
        tasks[0]["annotations"][0]["result"][0]["value"]["points"] = [[1, 2]]
        tasks[0]["annotations"][0]["result"][2]["value"]["rle"] = [0, 0, 1]
        tasks[1]["annotations"].append(tasks[1]["annotations"][0])
        tasks[2]["data"]["image"] = "/data/upload/1/other.jpg"

    tools.edit_json(next(root.glob("*.json")), change)
    return path


def spoil_via(root: Path) -> Path:
    path = tools.via_json(root)

    def change(content: dict) -> None:
        first, second, third = content.values()
        first["regions"][0]["shape_attributes"]["all_points_x"].pop()
        first["regions"][1]["region_attributes"]["type"] = ""
        second["regions"][0]["shape_attributes"]["name"] = "star"
        third["filename"] = "other.jpg"

    tools.edit_json(root / "via_region_data.json", change)
    return path


def spoil_masks(root: Path) -> Path:
    path = tools.camvid(root)
    (root / "class_dict.csv").write_text("name,r,g,b\nbackground,0,0,0\ncat,128,0\ndog,0,0,0\n")
    return path


def spoil_mask_files(root: Path) -> Path:
    path = tools.ade20k(root)
    labels = tools.label_map()
    labels[0, 0] = 77
    trees.write_mask(root / "annotations/training/0.png", labels)
    trees.write_mask(root / "annotations/training/1.png", tools.in_colours(tools.label_map()))
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
    "voc": (
        spoil_voc,
        ("SegmentationClass/0.png: 1 colours stand for no class, for instance [(1, 2, 3)]",
         "SegmentationObject/1.png: object 3 covers the classes ['background', 'dog']"),
    ),
    "voc files": (spoil_voc_files, ("JPEGImages/1.jpg", "SegmentationObject/2.png")),
    "cvat": (
        spoil_cvat,
        ("annotations.xml: 4 faults", "image 0.jpg, mask 2: label 'horse' is none of the task's",
         "image 0.jpg, polygon 0: a polygon needs an x and a y", "image 1.jpg, mask 2: the runs of rle sum to",
         "image 2.jpg not found"),
    ),
    "label studio": (
        spoil_label_studio,
        (".json: 4 faults", "task 1, result p0: a polygon needs at least 3 points", "task 1, result b: brush 'rle'",
         "task 2: 2 annotations of one image", "task 3: image /data/upload/1/other.jpg not found"),
    ),
    "via": (
        spoil_via,
        (".json: 4 faults", "image 0.jpg, region 0: malformed",
         "image 0.jpg, region 1: region attribute 'type' must name",
         "image 1.jpg, region 0: shape must be polygon", "image other.jpg not found"),
    ),
    "colour table": (
        spoil_masks,
        ("class_dict.csv: 2 faults", "line 3: expected a name and three", "line 4: the colour"),
    ),
    "masks": (spoil_mask_files, ("0.png: ids [77] have no name", "1.png: a picture of 3 colours, and no table")),
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


def test_table_of_layouts_is_what_the_tests_run() -> None:
    """Rows and the layouts of the tests above are the same, and each row names the tool's version."""
    page = (Path(__file__).parents[2] / "docs/reference/files.md").read_text(encoding="utf-8")
    table = page.partition("### Layouts of own data")[2].partition("\n\nOne message")[0]
    lines = [line for line in table.splitlines() if line.startswith("| `")][1:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    listed = [(name.strip("`"), layout.partition(":")[0], task) for name, layout, _, task, _ in rows]
    kinds = {"instance": LAYOUTS, "semantic": SEMANTIC_LAYOUTS, "panoptic": more.PANOPTIC_LAYOUTS}
    tested = [
        (format_named(name).option, layout, task)
        for task, layouts in kinds.items()
        for layout, (_, name) in layouts.items()
    ]
    assert sorted(listed) == sorted(tested)
    assert len(listed) >= 40
    assert all(version for _, _, version, _, _ in rows)


def test_classes_without_an_object_are_named_and_left_out_on_demand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tools.roboflow_coco(tmp_path / "data")
    arguments = ["convert-dataset", str(source), "--to", "coco-instances"]
    assert main([*arguments, str(tmp_path / "kept")]) == 0
    assert "classes without an object: 1 (pets)" in capsys.readouterr().out
    assert main([*arguments, str(tmp_path / "dropped"), "--drop-empty-classes"]) == 0
    assert "left out 1 classes of no object: pets" in capsys.readouterr().out
    names = [[entry.name for entry in read_own_data(tmp_path / folder).classes] for folder in ("kept", "dropped")]
    assert names == [["pets", "cat", "dog"], ["cat", "dog"]]


def test_zip_file_is_read_and_a_damaged_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tools.supervisely(tmp_path / "data/project")
    archive = Path(shutil.make_archive(str(tmp_path / "export"), "zip", tmp_path / "data"))
    convert_own_data(archive, tmp_path / "out", target="yolo")
    assert objects_of(read_own_data(tmp_path / "out")) == [EXPECTED] * 3
    archive.write_bytes(archive.read_bytes()[:-400])
    assert main(["convert-dataset", str(archive), str(tmp_path / "other"), "--to", "yolo"]) == 1
    assert "export.zip: cannot be unpacked" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "export.zip", "out"]


def test_via_regions_may_have_several_attributes(tmp_path: Path) -> None:
    """The one that most regions have is the class."""
    path = tools.via_json(tmp_path)

    def change(content: dict[str, Any]) -> None:
        regions = [region for entry in content.values() for region in entry["regions"]]
        for region in regions[:3]:
            region["region_attributes"]["note"] = "2"

    tools.edit_json(path / "via_region_data.json", change)
    assert {entry.name for entry in read_own_data(path, num_workers=1).classes} == {"cat", "dog"}
