"""``--skip-bad``: what is wrong is left out and listed, in every format; without it all faults are named at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mask2former.commands.cli import main
from mask2former.data.own_data import (
    ClassChoice,
    OpenedData,
    all_formats,
    detect_format,
    open_own_data,
    read_own_data,
    segment_masks,
)
from mask2former.errors import DatasetError
from mask2former.files.faults import Faults, gathered_faults
from mask2former.files.ytvis import read_videos
from tests.data_pipeline import own_data_trees as trees
from tests.data_pipeline import test_tool_formats as wrong
from tests.data_pipeline import tool_trees as tools

SKIP_BAD = ClassChoice(skip_bad=True)


def spoil_coco(root: Path) -> Path:
    tools.fiftyone_coco(root)

    def change(content: dict[str, Any]) -> None:
        content["images"][0]["height"] = "tall"  # its three annotations go with it
        content["annotations"][3]["segmentation"] = "none"
        content["annotations"][4]["category_id"] = 77
        content["annotations"][5].pop("segmentation")

    tools.edit_json(root / "labels.json", change)
    (root / "data/2.jpg").write_bytes((root / "data/2.jpg").read_bytes()[:500])  # cut off
    trees.write_image(root / "data/3.jpg")
    tools.edit_json(root / "labels.json", lambda c: c["images"].append({**c["images"][2], "id": 9, "file_name": "no"}))
    return root


def spoil_coco_panoptic(root: Path) -> Path:
    trees.write_coco_panoptic(root)
    file = next((root / "annotations").glob("*train*.json"))

    def change(content: dict[str, Any]) -> None:
        content["annotations"][0]["segments_info"][0]["category_id"] = 77

    tools.edit_json(file, change)
    return root


def spoil_png_tree(root: Path) -> Path:
    trees.write_png_tree(root, num_train=4)
    (root / "train/masks/0.png").unlink()
    trees.write_mask(root / "train/masks/1.png", trees.labels_of(0)[:5])
    trees.write_mask(root / "train/masks/no_image.png", trees.labels_of(0))
    return root


def spoil_mask(root: Path) -> Path:
    path = wrong.spoil_mask_files(root)
    trees.write_mask(root / "annotations/training/1.png", tools.label_map())
    return path


def spoil_labelme(root: Path) -> Path:
    trees.write_labelme(root)
    files = sorted(root.rglob("*.json"))
    tools.edit_json(files[0], lambda c: c["shapes"][0].update(points=[[1, 2]], shape_type="polygon"))
    trees.write_image(root / "alone.jpg")
    return root


def spoil_voc_classes(root: Path) -> Path:
    path = wrong.spoil_voc(root)
    shutil.rmtree(root / "SegmentationObject")
    return path


# How many entries are left out of each, and words of their reasons.
CASES: dict[str, tuple[Callable[[Path], Path], int, tuple[str, ...]]] = {
    "coco": (
        spoil_coco, 6,
        ("image 1: 'height'", "annotation 4: ", "annotation 5: category id 77",
         "annotation 6 of 1.jpg has no segmentation", "2.jpg: cannot be read as an image: truncated",
         "image no not found"),
    ),
    "coco panoptic": (spoil_coco_panoptic, 1, ("category id 77 has no class",)),
    "png tree": (spoil_png_tree, 3, ("images without a mask", "masks without an image", "1.png: mask has")),
    "labelme": (spoil_labelme, 2, ("shape 0", "alone.jpg")),
    "yolo": (wrong.spoil_yolo, 5, wrong.WRONG["yolo"][1][1:3]),
    "supervisely": (wrong.spoil_supervisely, 3, wrong.WRONG["supervisely"][1][1:]),
    "voc": (wrong.spoil_voc, 2, wrong.WRONG["voc"][1]),
    "voc classes": (spoil_voc_classes, 1, wrong.WRONG["voc"][1][:1]),
    "voc files": (wrong.spoil_voc_files, 2, wrong.WRONG["voc files"][1]),
    "cvat": (wrong.spoil_cvat, 4, wrong.WRONG["cvat"][1][1:]),
    "label studio": (wrong.spoil_label_studio, 4, wrong.WRONG["label studio"][1][1:]),
    "via": (wrong.spoil_via, 4, wrong.WRONG["via"][1][1:]),
    "masks": (spoil_mask, 1, ("0.png: ids [77] have no name",)),
}  # fmt: skip


def test_every_format_has_wrong_input_above(tmp_path: Path) -> None:
    """But the library datasets, whose wrong columns and rows stand in test_dataset_conversion."""
    found = {detect_format(spoil(tmp_path / case)).name for case, (spoil, *_) in CASES.items()}
    assert found == {data_format.name for data_format in all_formats()} - {"datasets"}


def counts(opened: OpenedData) -> dict[str, list[int]]:
    return {part: [len(image.segments) for image in images] for part, images in opened.dataset.parts.items()}


@pytest.mark.parametrize("case", CASES)
def test_bad_entries_are_left_out_and_listed(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, number, reasons = CASES[case]
    path = spoil(tmp_path / "data")
    assert main(["convert-dataset", str(path), str(tmp_path / "refused"), "--to", "coco-panoptic"]) == 1
    refusal = capsys.readouterr().err
    assert (refusal.count("error:"), refusal.count("Traceback")) == (1, 0)
    assert [reason for reason in reasons if reason not in refusal and "truncated" not in reason] == []
    opened = open_own_data(path, SKIP_BAD)
    assert len(opened.left_out) == number, opened.left_out
    for reason in reasons:
        assert any(reason in line for line in opened.left_out)
    assert all(str(tmp_path) in line for line in opened.left_out)
    for image in opened.dataset.images():
        segment_masks(image)

    target = tmp_path / "out"
    assert main(["convert-dataset", str(path), str(target), "--to", "coco-panoptic", "--skip-bad"]) == 0
    said = capsys.readouterr().out
    assert f"--skip-bad left out {number if number > 1 else 'one'} faulty" in said
    assert str(target / "left_out.txt") in said
    assert len((target / "left_out.txt").read_text().splitlines()) == number
    assert read_own_data(target).parts["train"]


def test_what_is_right_stays(tmp_path: Path) -> None:
    """The second image has lost all objects but not its place; the first and the cut one are gone."""
    assert counts(open_own_data(spoil_coco(tmp_path / "coco"), SKIP_BAD)) == {"train": [0]}
    assert counts(open_own_data(wrong.spoil_yolo(tmp_path / "yolo"), SKIP_BAD)) == {"train": [1, 0], "valid": [0]}
    opened = open_own_data(wrong.spoil_cvat(tmp_path / "cvat"), SKIP_BAD)
    assert counts(opened) == {"train": [1, 2]}
    np.testing.assert_array_equal(
        segment_masks(opened.dataset.parts["train"][0])[0], tools.rectangle_mask(tools.DOGS[1])
    )


@pytest.mark.parametrize("spoil", [wrong.spoil_yolo_detection, wrong.spoil_masks])
def test_wrong_tables_and_layouts_are_refused_all_the_same(spoil: Callable[[Path], Path], tmp_path: Path) -> None:
    with pytest.raises(DatasetError):
        open_own_data(spoil(tmp_path / "data"), SKIP_BAD)


def test_faults_of_all_files_stand_in_one_message(tmp_path: Path) -> None:
    """Of annotations, of image files and of the validation part, which were found one after the other."""
    root = trees.write_coco_instances(tmp_path / "coco")
    for part in ("train2017", "val2017"):
        tools.edit_json(
            root / f"annotations/instances_{part}.json", lambda c: c["annotations"][0].update(category_id=5)
        )
    next((root / "train2017").glob("1.jpg")).unlink()
    with pytest.raises(DatasetError) as refused:
        read_own_data(root)
    for words in ("instances_train2017.json: annotation 1", "instances_val2017.json: annotation 1", "1.jpg not found"):
        assert words in str(refused.value)


def test_nothing_left_to_train_on_is_refused_with_the_reasons(tmp_path: Path) -> None:
    root = tools.fiftyone_coco(tmp_path / "coco")
    tools.edit_json(root / "labels.json", lambda c: [image.pop("width") for image in c["images"]])
    with pytest.raises(DatasetError, match=r"no image(.|\n)*image 1: missing 'width'"):
        open_own_data(root, SKIP_BAD)


def test_images_of_one_id_are_both_left_out(tmp_path: Path) -> None:
    """Annotations of this id may be of the one or of the other."""
    root = tools.fiftyone_coco(tmp_path / "coco")
    tools.edit_json(root / "labels.json", lambda c: c["images"][1].update(id=1))
    opened = open_own_data(root, SKIP_BAD)
    assert [image.file.name for image in opened.dataset.parts["train"]] == ["2.jpg"]


def test_videos_and_tracks_are_left_out(tmp_path: Path) -> None:
    video = {"height": 4, "width": 4, "length": 1}
    track = {"category_id": 1, "segmentations": [[[0, 0, 3, 0, 3, 3]]]}
    content = {
        "videos": [{**video, "id": 1, "file_names": ["a/0.jpg"]}, {**video, "id": 2, "file_names": []}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {**track, "id": 1, "video_id": 1},
            {**track, "id": 2, "video_id": 1, "segmentations": []},
            {**track, "id": 3, "video_id": 2},
        ],
    }
    (tmp_path / "videos.json").write_text(json.dumps(content))
    with gathered_faults(leave_out=True) as left_out:
        found = read_videos(tmp_path / "videos.json", annotated=True)
    assert list(found.videos) == [1]
    assert [entry["id"] for entry in found.tracks or ()] == [1]
    assert len(left_out) == 3


def test_gathered_faults_raise_once_and_keep_later_errors() -> None:
    first, second = Faults("a.json"), Faults("b.json")
    first.add("entry 1: wrong")
    second.add("entry 2: wrong")

    def read() -> None:
        with gathered_faults():
            first.refuse()
            second.refuse()
            raise DatasetError("c.json: gone")

    with pytest.raises(DatasetError, match=r"^a.json: entry 1: wrong\n  b.json: entry 2: wrong\n  c.json: gone$"):
        read()
    with gathered_faults(leave_out=True) as left_out:
        first.refuse()
        with gathered_faults():  # the outer one decides
            second.refuse()
    assert left_out == ["a.json: entry 1: wrong", "b.json: entry 2: wrong"]
    second.add("table: wrong", is_lasting=True)
    with pytest.raises(DatasetError, match="table: wrong"), gathered_faults(leave_out=True):
        second.refuse()
    with pytest.raises(DatasetError, match=r"^a.json: entry 1: wrong$"):
        first.refuse()
