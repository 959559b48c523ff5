"""Each format is read into the same type; what is wrong with files is said with their names."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former.data.own_data import OwnDataset, datasets_library, read_own_data, segment_masks
from mask2former.errors import DatasetError
from mask2former.structures import segmentation_to_bitmask
from tests.data_pipeline import own_data_trees as trees


def edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def class_names(dataset: OwnDataset) -> dict[int, str]:
    return {entry.id: entry.name for entry in dataset.classes}


def assert_masks_are_scenes(dataset: OwnDataset, *, things_alone: bool = False) -> None:
    for image in dataset.images():
        ids, segments = trees.scene(int(image.file.stem))
        segments = segments[1:] if things_alone else segments
        masks = segment_masks(image)
        assert masks.shape == (len(image.segments), trees.HEIGHT, trees.WIDTH)
        for class_id in {segment["category_id"] for segment in segments}:
            expected = np.isin(ids, [s["id"] for s in segments if s["category_id"] == class_id])
            found = masks[[segment.class_id == class_id for segment in image.segments]].any(axis=0)
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("valid", ["valid", "val"])
def test_png_tree_is_read_with_both_parts(tmp_path: Path, valid: str) -> None:
    dataset = read_own_data(trees.write_png_tree(tmp_path / "tree", num_train=3, valid=valid))
    assert dataset.format == "png_tree"
    assert {part: len(images) for part, images in dataset.parts.items()} == {"train": 3, "valid": 1}
    assert class_names(dataset) == {3: "class_3", 7: "class_7", 20: "class_20", 255: "class_255"}
    image = dataset.parts["train"][1]  # an odd scene: sky and nothing else
    assert {s.class_id: s.area for s in image.segments} == {3: 12 * 32, 255: 12 * 32}
    masks = segment_masks(image)
    assert masks[0, :12].all()
    assert not masks[0, 12:].any()


@pytest.mark.parametrize("kind", ["L", "P", "I;16", "1"])
def test_png_masks_may_be_grey_paletted_deep_or_binary(tmp_path: Path, kind: str) -> None:
    tree = trees.write_png_tree(tmp_path / "tree", num_train=1)
    labels = trees.labels_of(0)
    if kind == "I;16":
        labels = labels.astype(np.uint16)
        labels[0, 0] = 1000
    labels = labels == 3 if kind == "1" else labels
    trees.write_mask(tree / "train/masks/0.png", labels, kind)
    with Image.open(tree / "train/masks/0.png") as picture:
        assert picture.mode.startswith(kind[:1])
    found = {s.class_id for s in read_own_data(tree).parts["train"][0].segments}
    assert found == {"I;16": {3, 7, 20, 255, 1000}, "1": {0, 1}}.get(kind, {3, 7, 20, 255})


def test_png_tree_of_two_images_and_a_mask_without_classes_is_read(tmp_path: Path) -> None:
    tree = trees.write_png_tree(tmp_path / "tree", num_train=1, num_valid=1)
    trees.write_mask(tree / "valid/masks/100.png", np.full((trees.HEIGHT, trees.WIDTH), 255, np.uint8))
    assert [s.class_id for s in read_own_data(tree).parts["valid"][0].segments] == [255]


def _rgb_mask(tree: Path) -> None:
    trees.write_image(tree / "train/masks/1.png")


def _other_size(tree: Path) -> None:
    trees.write_mask(tree / "train/masks/1.png", np.zeros((5, 7), np.uint8))


def _no_mask(tree: Path) -> None:
    (tree / "train/masks/1.png").unlink()


def _no_image(tree: Path) -> None:
    (tree / "valid/images/100.jpg").unlink()
    trees.write_image(tree / "valid/images/7.jpg")
    trees.write_mask(tree / "valid/masks/7.png", trees.labels_of(0))


def _torn(tree: Path) -> None:
    (tree / "train/masks/1.png").write_bytes((tree / "train/masks/1.png").read_bytes()[:40])


def _jpeg_masks(tree: Path) -> None:
    for mask in list((tree / "train/masks").iterdir()):
        mask.rename(mask.with_suffix(".jpg"))


def _twice(tree: Path) -> None:
    trees.write_image(tree / "train/images/1.png")


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (_rgb_mask, ["train/masks/1.png", "one channel of class ids", "3 channels"]),
        (_other_size, ["train/masks/1.png", "(5, 7)", "(24, 32)"]),
        (_no_mask, ["images without a mask", "train/images/1.jpg"]),
        (_no_image, ["masks without an image", "valid/masks/100.png"]),
        (_torn, ["train/masks/1.png"]),
        (_jpeg_masks, ["train/masks", "no file found", ".png"]),
        (_twice, ["1.jpg", "1.png", "differ in nothing but the suffix"]),
    ],
)
def test_png_tree_names_the_wrong_file(tmp_path: Path, damage: Any, parts: list[str]) -> None:
    tree = trees.write_png_tree(tmp_path / "tree")
    damage(tree)
    with pytest.raises(DatasetError) as caught:
        read_own_data(tree)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_many_wrong_files_are_named_in_part_and_counted(tmp_path: Path) -> None:
    tree = trees.write_png_tree(tmp_path / "tree", num_train=25)
    for number in range(23):
        trees.write_image(tree / "train/masks" / f"{number}.png")
    with pytest.raises(DatasetError, match="and 3 more"):
        read_own_data(tree)


def test_scanning_in_processes_gives_the_same(tmp_path: Path) -> None:
    tree = trees.write_png_tree(tmp_path / "tree", num_train=4)
    assert read_own_data(tree, num_workers=2) == read_own_data(tree)


@pytest.mark.parametrize("layout", ["folder", "file", "exported", "one folder"])
def test_coco_instances_are_found_in_each_layout(tmp_path: Path, layout: str) -> None:
    path = root = trees.write_coco_instances(tmp_path / "coco")
    if layout == "file":
        path = root / "annotations/instances_train2017.json"
    elif layout == "exported":
        for part, year in (("train", "train2017"), ("valid", "val2017")):
            (root / year).rename(root / part)
            (root / f"annotations/instances_{year}.json").rename(root / part / "_annotations.coco.json")
    elif layout == "one folder":
        (root / "images").mkdir()
        for year in ("train2017", "val2017"):
            (root / f"annotations/instances_{year}.json").rename(root / f"{year.rstrip('2017')}.json")
            for image in list((root / year).iterdir()):
                image.rename(root / "images" / image.name)
    dataset = read_own_data(path)
    assert dataset.format == "coco_instances"
    assert {part: len(images) for part, images in dataset.parts.items()} == {"train": 2, "valid": 2}
    assert class_names(dataset) == {7: "box", 20: "disc"}
    assert [len(image.segments) for image in dataset.parts["train"]] == [3, 0]
    assert_masks_are_scenes(dataset, things_alone=True)


def test_coco_masks_may_be_polygons_lists_of_counts_and_bitmaps(tmp_path: Path) -> None:
    root = trees.write_coco_instances(tmp_path / "coco")
    mask = trees.scene(0)[0] == 1
    counts = [8 + 2 * 24, *([12, 12] * 8)]
    counts[-1] = 24 * 32 - sum(counts[:-1])

    def change(content: dict[str, Any]) -> None:
        content["annotations"][0]["segmentation"] = [[2, 8, 10, 8, 10, 20, 2, 20]]
        content["annotations"][1]["segmentation"] = {"size": [24, 32], "counts": counts}
        content["annotations"][2]["segmentation"] = mask.astype(int).tolist()

    edit(root / "annotations/instances_train2017.json", change)
    image = read_own_data(root).parts["train"][0]
    for segment in image.segments:
        np.testing.assert_array_equal(segmentation_to_bitmask(segment.mask, 24, 32), mask)
    np.testing.assert_array_equal(segment_masks(image), np.stack([mask] * 3))


def test_coco_panoptic_is_read_and_wins_where_it_is_preferred(tmp_path: Path) -> None:
    root = trees.write_coco_panoptic(tmp_path / "coco", parts=("train2017", "val2017"))
    trees.write_coco_instances(root)
    dataset = read_own_data(root, preferred="coco_panoptic")
    assert dataset.format == "coco_panoptic"
    assert [(c.id, c.name, c.is_thing) for c in dataset.classes] == [
        (3, "sky", False),
        (7, "box", True),
        (20, "disc", True),
    ]
    assert [s.instance_id for s in dataset.parts["train"][0].segments] == [None, 1, 2, 70_000]
    assert [s.area for s in dataset.parts["train"][1].segments] == [12 * 32]
    assert_masks_are_scenes(dataset)
    assert read_own_data(root, preferred="coco_instances").format == "coco_instances"


def test_coco_panoptic_file_alone_is_one_part(tmp_path: Path) -> None:
    root = trees.write_coco_panoptic(tmp_path / "coco", parts=("everything",))
    dataset = read_own_data(root / "annotations/panoptic_everything.json")
    assert {part: len(images) for part, images in dataset.parts.items()} == {"train": 2}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda c: c["annotations"][0].update(category_id=5), ["category id 5", "0.jpg", "[7, 20]"]),
        (lambda c: c["annotations"][0].pop("segmentation"), ["annotation 1 of 0.jpg has no segmentation"]),
        (lambda c: c["images"][1].update(height=9), ["1.jpg", "(24, 32)", "(9, 32)"]),
        (lambda c: c["images"][1].update(file_name="gone.jpg"), ["gone.jpg"]),
        (lambda c: c["images"][0].update(file_name="gone.jpg"), ["gone.jpg not found", "looked in"]),
        (lambda c: c["categories"].clear(), ["no 'categories'"]),
        (lambda c: c["categories"][0].update(id=7), ["category 7: the id occurs twice"]),
        (lambda c: c["categories"][0].update(name="ring"), ["category id 20 is 'ring'", "'disc'"]),
    ],
)
def test_coco_instances_name_what_is_wrong(tmp_path: Path, change: Any, parts: list[str]) -> None:
    root = trees.write_coco_instances(tmp_path / "coco")
    edit(root / "annotations/instances_train2017.json", change)
    with pytest.raises(DatasetError) as caught:
        read_own_data(root)
    assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda c: c["annotations"][0]["segments_info"].pop(), ["0.png", "70000", "have no entry"]),
        (lambda c: c["annotations"][0]["segments_info"][0].update(category_id=5), ["image 0", "category id 5"]),
        (lambda c: c["annotations"].clear(), ["neither COCO instances nor COCO panoptic"]),
        (lambda c: c["annotations"][0].update(image_id=99), ["99", "not listed"]),
    ],
)
def test_coco_panoptic_names_what_is_wrong(tmp_path: Path, change: Any, parts: list[str]) -> None:
    root = trees.write_coco_panoptic(tmp_path / "coco")
    file = root / "annotations/panoptic_train.json"
    edit(file, change)
    if parts[0].startswith("neither"):
        edit(file, lambda c: c.pop("categories"))
    with pytest.raises(DatasetError) as caught:
        read_own_data(file)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_labelme_shapes_become_objects(tmp_path: Path) -> None:
    dataset = read_own_data(trees.write_labelme(tmp_path / "photos"))
    assert dataset.format == "labelme"
    assert class_names(dataset) == {0: "box", 1: "disc", 2: "leaf"}
    images = dataset.parts["train"]
    assert [len(image.segments) for image in images] == [4, 0, 0]
    box, disc, leaf, patch = segment_masks(images[0])
    expected = np.zeros_like(box)
    expected[2:8, 2:10] = True
    np.testing.assert_array_equal(box, expected)
    assert disc.sum() == pytest.approx(np.pi * 16, rel=0.1)
    assert leaf[15, 3]
    assert leaf[15, 10]  # both parts of the group
    assert not leaf[15, 7]
    np.testing.assert_array_equal(np.argwhere(patch).min(axis=0), [1, 26])
    assert patch.sum() == 16
    assert dataset.notes == ["left out 1 shapes: a line has no area", "left out 1 shapes: labelled __ignore__"]


def test_labelme_parts_are_folders(tmp_path: Path) -> None:
    trees.write_labelme(tmp_path / "photos/train")
    trees.write_labelme(tmp_path / "photos/valid", num=1)
    dataset = read_own_data(tmp_path / "photos")
    assert {part: len(images) for part, images in dataset.parts.items()} == {"train": 3, "valid": 1}
    assert len({image.image_id for image in dataset.images()}) == 4


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda c: c.update(imageWidth=5), ["0.json", "(24, 32)", "(24, 5)"]),
        (lambda c: c["shapes"][0].update(shape_type="star"), ["0.json: shape 0 (box)", "'star'", "rectangle"]),
        (lambda c: c["shapes"][2].update(points=[[1, 1]]), ["0.json: shape 2 (leaf)", "3 points"]),
        (lambda c: c["shapes"][0].update(points=[[1, 1]]), ["shape 0", "expected 2 points"]),
        (lambda c: c["shapes"][0].pop("points"), ["shape 0", "missing 'points'"]),
        (lambda c: c["shapes"][4].update(mask="?"), ["shape 4", "base64"]),
        (lambda c: c.pop("shapes"), ["0.json", "'shapes'"]),
    ],
)
def test_labelme_names_what_is_wrong(tmp_path: Path, change: Any, parts: list[str]) -> None:
    root = trees.write_labelme(tmp_path / "photos")
    edit(root / "0.json", change)
    (root / "00.json").write_text((root / "1.json").read_text())  # detection looks at the first file
    with pytest.raises(DatasetError) as caught:
        read_own_data(root)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_labelme_image_and_file_belong_together(tmp_path: Path) -> None:
    root = trees.write_labelme(tmp_path / "photos")
    (root / "1.json").unlink()
    with pytest.raises(DatasetError, match=r"images without a labelme file.*1\.jpg"):
        read_own_data(root)
    (root / "1.jpg").unlink()
    (root / "2.jpg").unlink()
    with pytest.raises(DatasetError, match=r"2\.json: image not found"):
        read_own_data(root)
    with pytest.raises(DatasetError, match="give the folder"):
        read_own_data(root / "2.json")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"images": []}'])
def test_what_is_no_data_set_is_refused_with_what_is_expected(tmp_path: Path, content: str) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(DatasetError, match="train/images and train/masks"):
            read_own_data(path)
    file = tmp_path / "data.json"
    file.write_text(content)
    with pytest.raises(DatasetError, match=r"data\.json"):
        read_own_data(file)


def test_several_files_of_a_part_are_named(tmp_path: Path) -> None:
    root = trees.write_coco_instances(tmp_path / "coco")
    source = root / "annotations/instances_train2017.json"
    (root / "annotations/instances_train2014.json").write_text(source.read_text())
    with pytest.raises(DatasetError, match=r"instances_train2014\.json.*instances_train2017\.json"):
        read_own_data(root)


@pytest.mark.parametrize("write", [trees.write_coco_instances, trees.write_coco_panoptic])
@pytest.mark.parametrize("give_file", [True, False])
def test_coco_files_are_parsed_once(
    write: Any, give_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write(tmp_path / "data")
    files = sorted(root.rglob("*.json"))
    train = next(file for file in files if "train" in file.name)
    parsed = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(text) or loads(text))
    dataset = read_own_data(train if give_file else root)
    assert set(dataset.parts) == {"train", "valid"}
    assert len(parsed) == len(files) == 2


@pytest.mark.parametrize(
    ("part", "message"),
    [("train", "which file is for training.*val.*alone"), ("valid", "called as the validation part")],
)
@pytest.mark.parametrize("write", [trees.write_coco_instances, trees.write_coco_panoptic])
def test_coco_part_that_is_none_is_not_passed_over(write: Any, part: str, message: str, tmp_path: Path) -> None:
    root = write(tmp_path / "data")
    train, valid = sorted(root.rglob("*.json"))
    damaged = train if part == "train" else valid
    damaged.write_text("[1, 2]")
    with pytest.raises(DatasetError, match=message):
        read_own_data(root)
    with pytest.raises(DatasetError, match=message if part == "valid" else "neither COCO"):
        read_own_data(train)


def test_a_folder_named_datasets_is_not_taken_for_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", ModuleType("datasets"))
    monkeypatch.setitem(sys.modules, "datasets.config", None)
    with pytest.raises(DatasetError, match=r"datasets is not installed: pip install 'mask2former\[transformers\]'"):
        datasets_library._library()
