"""The shapes data set on disk: consistent files, any number of processes, interruption, reading it back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mask2former.commands.cli import main as run_command
from mask2former.data.catalog import DatasetCatalog, MetadataCatalog
from mask2former.data.datasets.shapes import all_metadata, register_shapes_datasets
from mask2former.data.shapes import draw_scene, shape_classes, thing_classes
from mask2former.data.shapes.prepare import prepare_shapes
from mask2former.data.shapes.writing import ShapesParameters, instance_entries, item_generator, mask_to_polygons
from mask2former.errors import DatasetError
from mask2former.structures import rgb_to_id, segmentation_to_bitmask

SMALL = ShapesParameters(num_train=45, num_val=6, size=(48, 56), num_train_videos=3, num_val_videos=1, seed=7)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set below a folder `shapes`."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    assert prepare_shapes(root, SMALL, num_workers=1)
    return root


def main(arguments: list[str]) -> int:
    return run_command(["prepare", "shapes", *arguments])


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def read_ids(root: Path, entry: dict[str, Any], split: str = "train") -> np.ndarray:
    png = cv2.imread(str(root / f"panoptic_{split}" / entry["file_name"]))
    return rgb_to_id(png[..., ::-1])


def test_files_do_not_depend_on_the_number_of_processes(prepared: Path, tmp_path: Path) -> None:
    assert prepare_shapes(tmp_path / "two", SMALL, num_workers=2)
    assert contents(tmp_path / "two") == contents(prepared)


def test_items_do_not_depend_on_how_many_there_are(prepared: Path, tmp_path: Path) -> None:
    fewer = ShapesParameters(num_train=2, num_val=1, size=SMALL.size, num_train_videos=0, num_val_videos=0, seed=7)
    prepare_shapes(tmp_path, fewer, num_workers=1)
    assert (tmp_path / "train/000002.jpg").read_bytes() == (prepared / "train/000002.jpg").read_bytes()
    assert not (tmp_path / "annotations/video_train.json").exists()


def test_splits_hold_different_pictures(prepared: Path) -> None:
    train = {p.read_bytes() for p in (prepared / "train").iterdir()}
    val = {p.read_bytes() for p in (prepared / "val").iterdir()}
    assert len(train) == SMALL.num_train
    assert len(val) == SMALL.num_val
    assert not train & val


def test_only_finished_files_are_left(prepared: Path) -> None:
    tops = {p.name for p in prepared.iterdir()}
    kinds = ("", "panoptic_", "sem_seg_", "video_")
    assert tops == {"manifest.json", "annotations", *(kind + split for kind in kinds for split in ("train", "val"))}


def test_panoptic_annotations_agree_with_the_pngs(prepared: Path) -> None:
    content = read_json(prepared / "annotations/panoptic_train.json")
    assert [c["id"] for c in content["categories"]] == [c.category_id for c in shape_classes()]
    assert len(content["images"]) == len(content["annotations"]) == SMALL.num_train
    for image, entry in zip(content["images"], content["annotations"], strict=True):
        assert image["id"] == entry["image_id"]
        assert (image["height"], image["width"]) == SMALL.size
        ids = read_ids(prepared, entry)
        assert {s["id"] for s in entry["segments_info"]} == set(np.unique(ids).tolist()) - {0}
        for segment in entry["segments_info"]:
            mask = ids == segment["id"]
            assert segment["area"] == mask.sum()
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            assert segment["bbox"] == coco_mask.toBbox(rle).tolist()


def test_semantic_pngs_agree_with_the_panoptic_ones(prepared: Path) -> None:
    contiguous = {c.category_id: c.contiguous_id for c in shape_classes()}
    for entry in read_json(prepared / "annotations/panoptic_val.json")["annotations"]:
        ids = read_ids(prepared, entry, "val")
        expected = np.full(ids.shape, 255, np.uint8)
        for segment in entry["segments_info"]:
            expected[ids == segment["id"]] = contiguous[segment["category_id"]]
        found = cv2.imread(str(prepared / "sem_seg_val" / entry["file_name"]), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(found, expected)


def test_pycocotools_reads_instances_that_agree_with_the_panoptic_segments(prepared: Path) -> None:
    coco = COCO(str(prepared / "annotations/instances_train.json"))
    things = {c.category_id for c in thing_classes()}
    assert set(coco.getCatIds()) == things
    forms = set()
    for entry in read_json(prepared / "annotations/panoptic_train.json")["annotations"]:
        ids = read_ids(prepared, entry)
        segments = [s for s in entry["segments_info"] if s["category_id"] in things]
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=entry["image_id"]))
        assert len(annotations) == len(segments)
        for segment, annotation in zip(segments, annotations, strict=True):
            assert np.array_equal(coco.annToMask(annotation).astype(bool), ids == segment["id"])
            assert all(annotation[key] == segment[key] for key in ("category_id", "iscrowd", "area", "bbox"))
            forms.add(type(annotation["segmentation"]))
    assert forms == {dict, list}  # RLE and polygons
    assert len(set(coco.anns)) == len(coco.dataset["annotations"])


def test_videos_agree_with_their_annotations(prepared: Path) -> None:
    content = read_json(prepared / "annotations/video_train.json")
    videos = {video["id"]: video for video in content["videos"]}
    assert len(videos) == SMALL.num_train_videos
    for video in videos.values():
        assert video["length"] == len(video["file_names"])
        assert 10 <= video["length"] <= 20
        for name in video["file_names"]:
            frame = cv2.imread(str(prepared / "video_train/JPEGImages" / name))
            assert frame.shape == (video["height"], video["width"], 3)
    assert {a["video_id"] for a in content["annotations"]} == set(videos)
    for annotation in content["annotations"]:
        parts = [annotation[key] for key in ("segmentations", "bboxes", "areas")]
        assert all(len(part) == videos[annotation["video_id"]]["length"] == annotation["length"] for part in parts)
        assert any(rle is not None for rle in parts[0])
        for rle, bbox, area in zip(*parts, strict=True):
            assert (rle is None) == (bbox is None) == (area is None)
            if rle is not None:
                assert area == coco_mask.area(rle) > 0
                assert bbox == coco_mask.toBbox(rle).tolist()


def test_polygons_give_back_the_mask_or_are_refused() -> None:
    mask = np.zeros((20, 24), bool)
    assert mask_to_polygons(mask) is None
    mask[3:9, 4:15] = True
    mask[9:14, 7:10] = True
    polygons = mask_to_polygons(mask)
    assert polygons is not None
    assert np.array_equal(segmentation_to_bitmask(polygons, 20, 24), mask)
    mask[5:7, 6:9] = False
    assert mask_to_polygons(mask) is None  # polygons have no holes


def test_instances_of_a_scene_without_things_are_none() -> None:
    empty = next(scene for scene in map(draw_scene, range(200)) if not any(s.category.isthing for s in scene.segments))
    assert instance_entries(empty, 1) == []


# --- running it again, interruption, wrong input ---


def test_complete_data_set_is_kept(prepared: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in prepared.rglob("*")}
    assert not prepare_shapes(prepared, SMALL, num_workers=1)
    assert {p: p.stat().st_mtime_ns for p in prepared.rglob("*")} == before


def test_other_parameters_are_refused_and_forced(tmp_path: Path) -> None:
    first = ShapesParameters(num_train=3, num_val=1, size=(32, 32), num_train_videos=1, num_val_videos=0)
    other = ShapesParameters(num_train=2, num_val=1, size=(32, 32), num_train_videos=0, num_val_videos=0)
    prepare_shapes(tmp_path, first, num_workers=1)
    with pytest.raises(DatasetError, match=r"num_train is 3, asked for 2.*--force"):
        prepare_shapes(tmp_path, other, num_workers=1)
    assert prepare_shapes(tmp_path, other, num_workers=1, force=True)
    assert sorted(p.name for p in (tmp_path / "train").iterdir()) == ["000001.jpg", "000002.jpg"]
    assert not (tmp_path / "video_train").exists()


def test_deleted_picture_is_drawn_again(tmp_path: Path) -> None:
    parameters = ShapesParameters(num_train=2, num_val=1, size=(32, 32), num_train_videos=0, num_val_videos=0)
    prepare_shapes(tmp_path, parameters, num_workers=1)
    before = contents(tmp_path)
    (tmp_path / "train/000002.jpg").unlink()
    assert prepare_shapes(tmp_path, parameters, num_workers=1)
    assert contents(tmp_path) == before


def test_foreign_files_are_never_touched(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/mine.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(DatasetError, match="was not written by this command"):
            prepare_shapes(tmp_path, SMALL, num_workers=1, force=force)
    (tmp_path / "manifest.json").write_text('{"dataset": "other"}')
    with pytest.raises(DatasetError, match="not the manifest of a shapes data set"):
        prepare_shapes(tmp_path, SMALL, num_workers=1, force=True)
    assert (tmp_path / "train/mine.txt").read_text() == "mine"


@pytest.mark.parametrize("num_workers", [1, 2])
def test_killed_run_leaves_no_half_file_and_is_continued(tmp_path: Path, num_workers: int) -> None:
    # Enough to draw that the kill comes before the end on a busy machine too.
    parameters = ShapesParameters(num_train=240, num_val=1, size=(48, 48), num_train_videos=3, num_val_videos=1)
    root = tmp_path / "shapes"
    command = [sys.executable, str(ROOT / "datasets/prepare_shapes.py"), "--output", str(root)]
    command += ["--num-train=240", "--num-val=1", "--size=48", "--num-train-videos=3", "--num-val-videos=1"]
    process = subprocess.Popen(
        [*command, f"--num-workers={num_workers}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not list((root / "train").glob("*.jpg"))[3:] and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    _wait_for_workers(root)
    assert not (root / "manifest.json").exists()
    assert not (root / "annotations").exists()
    # Temporary files of the killed run have hidden names, which the continued one removes.
    left = {name: data for name, data in contents(root).items() if "/." not in f"/{name}"}
    prepare_shapes(tmp_path / "whole", parameters, num_workers=2)
    whole = contents(tmp_path / "whole")
    assert left
    assert all(whole[name] == data for name, data in left.items())
    assert prepare_shapes(root, parameters, num_workers=1)
    assert contents(root) == whole


def _wait_for_workers(root: Path) -> None:
    """Wait until nothing is written any more."""
    deadline = time.monotonic() + 30
    before: list[Path] | None = None
    while before != (now := sorted(root.rglob("*.jpg"))):
        assert time.monotonic() < deadline
        before = now
        time.sleep(0.3)


def test_run_stopped_while_making_room_starts_with_making_room(tmp_path: Path) -> None:
    parameters = ShapesParameters(num_train=2, num_val=1, size=(32, 32), num_train_videos=0, num_val_videos=0)
    prepare_shapes(tmp_path, parameters, num_workers=1)
    before = contents(tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / ".unfinished").mkdir()
    (tmp_path / ".unfinished/manifest.json").write_text("{}")
    (tmp_path / "train/000099.jpg").write_bytes(b"stale")
    assert prepare_shapes(tmp_path, parameters, num_workers=1)
    assert contents(tmp_path) == before


def test_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"cannot write .*file/shapes"):
        prepare_shapes(tmp_path / "file/shapes", SMALL, num_workers=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": 0}, "num_train: expected at least 1, found 0"),
        ({"num_val_videos": -1}, "num_val_videos: expected at least 0, found -1"),
        ({"seed": -3}, "seed: expected at least 0, found -3"),
        ({"size": (16, 128)}, "expected at least 32"),
        ({"num_frames": (5, 4)}, "num_frames"),
    ],
)
def test_parameters_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        ShapesParameters(**options)


def test_item_generators_are_independent() -> None:
    draws = {
        item_generator(0, kind, split, index).integers(1 << 60)
        for kind in ("image", "video")
        for split in ("train", "val")
        for index in range(5)
    }
    assert len(draws) == 20


def test_command_writes_below_the_dataset_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    arguments = ["--num-train=2", "--num-val=1", "--size=32", "--no-videos", "--num-workers=1"]
    assert main(arguments) == 0
    assert "2 training and 1 validation images, 0 videos" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "complete already" in capsys.readouterr().out
    assert (tmp_path / "shapes/train/000002.jpg").is_file()


def test_command_reports_wrong_input_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--output={tmp_path}", "--num-train=0"]) == 1
    assert capsys.readouterr().err.startswith("error: num_train")
    assert main([f"--output={tmp_path}", "--size", "1", "2", "3"]) == 1
    assert "--size" in capsys.readouterr().err
    assert main([f"--output={tmp_path}", "--num-workers=0"]) == 1
    assert "num_workers" in capsys.readouterr().err
    assert main([f"--output={tmp_path}", "--num-train=0", "--verbose"]) == 1
    assert "Traceback" in capsys.readouterr().err


# --- reading it through the catalog ---


def test_catalog_reads_panoptic_with_contiguous_ids(prepared: Path) -> None:
    register_shapes_datasets(prepared.parent)
    dicts = DatasetCatalog.get("shapes_panoptic_train")
    metadata = MetadataCatalog.get("shapes_panoptic_train")
    assert len(dicts) == SMALL.num_train
    assert metadata.evaluator_type == "coco_panoptic_seg"
    assert metadata.stuff_classes[: len(metadata.thing_classes)] == metadata.thing_classes
    entries = read_json(Path(metadata.panoptic_json))["annotations"]
    mapping = metadata.stuff_dataset_id_to_contiguous_id
    for record, entry in zip(dicts, entries, strict=True):
        assert all(Path(record[key]).is_file() for key in ("file_name", "pan_seg_file_name", "sem_seg_file_name"))
        found = [(s["id"], s["category_id"]) for s in record["segments_info"]]
        assert found == [(s["id"], mapping[s["category_id"]]) for s in entry["segments_info"]]


def test_catalog_reads_instances_and_semantic(prepared: Path) -> None:
    register_shapes_datasets(prepared.parent)
    register_shapes_datasets(prepared.parent)  # again: nothing happens
    instances = DatasetCatalog.get("shapes_instance_val")
    assert len(instances) == SMALL.num_val
    classes = {a["category_id"] for record in instances for a in record["annotations"]}
    assert classes
    assert classes <= set(range(len(thing_classes())))
    assert len(DatasetCatalog.get("shapes_sem_seg_val")) == SMALL.num_val
    assert MetadataCatalog.get("shapes_sem_seg_val").stuff_classes == all_metadata()["stuff_classes"]


def test_catalog_knows_where_the_videos_are(prepared: Path) -> None:
    register_shapes_datasets(prepared.parent)
    metadata = MetadataCatalog.get("shapes_video_train")
    content = read_json(Path(metadata.json_file))
    assert (Path(metadata.image_root) / content["videos"][0]["file_names"][0]).is_file()
    assert set(metadata.thing_dataset_id_to_contiguous_id) == {c["id"] for c in content["categories"]}


def test_missing_folder_names_the_command_that_draws_it(tmp_path: Path) -> None:
    register_shapes_datasets(tmp_path)
    for name in ("shapes_panoptic_train", "shapes_instance_val", "shapes_sem_seg_train"):
        with pytest.raises(DatasetError, match=r"shapes does not exist.*python datasets/prepare_shapes.py"):
            DatasetCatalog.get(name)
    (tmp_path / "shapes").mkdir()
    with pytest.raises(DatasetError, match="is not complete"):
        DatasetCatalog.get("shapes_panoptic_val")
