"""Panoptic, video and labelme annotations that contradict themselves, or lead out of the output, are refused."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.data.datasets import load_coco_panoptic_json, load_ytvis_json
from mask2former.data.own_data import read_own_data, segment_masks, training_classes, write_index
from mask2former.errors import DatasetError
from mask2former.evaluation import COCOPanopticEvaluator, evaluate_panoptic, evaluate_video
from mask2former.files.annotation_values import safe_name
from mask2former.structures import Metadata, MetadataCatalog, id_to_rgb

H, W = 13, 17
Change = Callable[[dict[str, Any]], object]


def ids_of(image: int) -> np.ndarray:
    ids = np.full((H, W), 100, dtype=np.int32)
    ids[2:6, 3 + image : 9 + image] = 70_000
    return ids


def write_panoptic(root: Path, change: Change = lambda content: None, *, photos: str = "images") -> Path:
    """Two images whose photos bear the names of their PNGs; returns the json."""
    pngs = root / "annotations/panoptic_train"
    for folder in (root / photos, pngs):
        folder.mkdir(parents=True)
    for image in range(2):
        Image.fromarray(np.full((H, W, 3), 90, dtype=np.uint8)).save(root / photos / f"{image}.png")
        Image.fromarray(id_to_rgb(ids_of(image))).save(pngs / f"{image}.png")
    segments = [{"id": 100, "category_id": 2}, {"id": 70_000, "category_id": 1}]
    content: dict[str, Any] = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": H, "width": W} for i in range(2)],
        "annotations": [
            {"image_id": i, "file_name": f"{i}.png", "segments_info": [dict(s) for s in segments]} for i in range(2)
        ],
        "categories": [{"id": 1, "name": "box", "isthing": 1}, {"id": 2, "name": "ground", "isthing": 0}],
    }
    change(content)
    path = root / "annotations/panoptic_train.json"
    path.write_text(json.dumps(content))
    return path


def first_segment(**changes: Any) -> Change:
    return lambda content: content["annotations"][0]["segments_info"][0].update(changes)


PANOPTIC: dict[str, tuple[Change, str]] = {
    "image id twice": (lambda c: c["images"][1].update(id=0.0), "image 0.0: the id occurs twice"),
    "annotated twice": (lambda c: c["annotations"][1].update(image_id=0), "image 0: the image is annotated twice"),
    "segment twice": (first_segment(id=70_000), "image 0: segment id 70000 is listed twice"),
    "segment of id 0": (first_segment(id=0), "image 0: segment id 0 must lie in 1..16777215"),
    "segment beyond colours": (first_segment(id=2**24), "image 0: segment id 16777216 must lie in"),
    "segment id that is none": (first_segment(id=1.5), "image 0: 'id' must be a whole number, found 1.5"),
    "category unknown": (first_segment(category_id=5), "image 0: segment 100: category id 5 has no class"),
    "one name": (lambda c: c["categories"][1].update(name="box"), r"categories \[1, 2\] have the same name 'box'"),
    "segments no list": (lambda c: c["annotations"][0].update(segments_info=7), "'segments_info' must be a list"),
    "iscrowd": (first_segment(iscrowd="maybe"), "'iscrowd' must be 0 or 1, found 'maybe'"),
    "image not listed": (lambda c: c["annotations"][0].update(image_id=9), "image 9 is not listed"),
    "name that is none": (lambda c: c["annotations"][0].update(file_name=""), "'file_name' must be the name of a file"),
}


@pytest.mark.parametrize("case", PANOPTIC)
def test_panoptic_annotations_are_refused_alike(case: str, tmp_path: Path) -> None:
    change, message = PANOPTIC[case]
    json_file = write_panoptic(tmp_path, change)
    pngs = json_file.with_suffix("")
    for read in (
        lambda: load_coco_panoptic_json(json_file, tmp_path / "images", pngs, metadata=Metadata("x")),
        lambda: read_own_data(tmp_path),
        lambda: evaluate_panoptic(json_file, pngs, json_file, pngs),
    ):
        with pytest.raises(DatasetError, match=message) as caught:
            read()
        assert "panoptic_train.json" in str(caught.value)


def test_panoptic_ids_that_no_segment_lists_are_refused(tmp_path: Path) -> None:
    json_file = write_panoptic(tmp_path, lambda c: c["annotations"][1]["segments_info"].pop())
    with pytest.raises(DatasetError, match=r"1\.png: segment ids \[70000\] have no entry in"):
        read_own_data(tmp_path)
    whole = json.loads(write_panoptic(tmp_path / "whole").read_text())
    (tmp_path / "found.json").write_text(json.dumps(whole))
    pngs = json_file.with_suffix("")
    with pytest.raises(DatasetError, match=r"1\.png .*segment ids \[70000\] are in the PNG and not in segments_info"):
        evaluate_panoptic(json_file, pngs, tmp_path / "found.json", pngs)


def test_panoptic_segments_without_a_pixel_and_crowds_are_counted(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["annotations"][0]["segments_info"].append({"id": 5, "category_id": 1, "iscrowd": None})
        content["annotations"][1]["segments_info"][1]["iscrowd"] = 1.0

    json_file = write_panoptic(tmp_path, change)
    notes = read_own_data(tmp_path).notes
    assert notes == [
        f"{json_file}: left out 1 of 5 segments: iscrowd 1",
        f"{json_file}: 1 segments have no pixel in their PNG",
    ]


@pytest.mark.parametrize("photos", ["images", "train", "images/train"])
def test_panoptic_pngs_are_no_photos(photos: str, tmp_path: Path) -> None:
    json_file = write_panoptic(tmp_path, photos=photos)
    images = read_own_data(tmp_path).parts["train"]
    assert [image.file for image in images] == [tmp_path / photos / f"{i}.png" for i in range(2)]
    assert [image.mask_file for image in images] == [json_file.with_suffix("") / f"{i}.png" for i in range(2)]
    pngs = json_file.with_suffix("")
    with pytest.raises(DatasetError, match="2 faults\n  image 0: the photo would be the panoptic PNG itself"):
        load_coco_panoptic_json(json_file, pngs, pngs, metadata=Metadata("x"))


@pytest.mark.parametrize("image_id", ["../../../victim", "/tmp/victim", "x" * 300, "C:\\victim", "1"])
def test_image_ids_lead_nowhere(image_id: str, tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["images"][0]["id"] = content["annotations"][0]["image_id"] = image_id

    write_panoptic(tmp_path / "a/b/c/data", change)
    dataset = read_own_data(tmp_path / "a/b/c/data")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    output = tmp_path / "a/b/c/run"
    classes = [entry for entry in training_classes(dataset) if entry.name == "box"]
    write_index(dataset, classes, output)
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert len(written) == 3
    assert all(path.is_relative_to(output) for path in written)


@pytest.mark.parametrize("name", ["../../out.png", "/tmp/out.png", "..\\out.png", "C:/out.png", "x" * 300 + ".png"])
def test_file_names_of_the_truth_lead_nowhere(name: str, tmp_path: Path) -> None:
    json_file = write_panoptic(tmp_path / "a/data", lambda c: c["annotations"][0].update(file_name=name))
    pngs = json_file.with_suffix("")
    dataset_name = "names_that_lead_out"
    MetadataCatalog.get(dataset_name).set(panoptic_json=str(json_file), panoptic_root=str(pngs))
    try:
        evaluator = COCOPanopticEvaluator(dataset_name, tmp_path / "a/run", save_pngs=True)
        evaluator._truth._ids_at = lambda position: ids_of(position)  # type: ignore[assignment]
        found = [{"id": 100, "category_id": 2}, {"id": 70_000, "category_id": 1}]
        evaluator.process([{"image_id": 0}], [{"panoptic_seg": (torch.from_numpy(ids_of(0)), found)}])
    finally:
        MetadataCatalog.remove(dataset_name)
    (written,) = (tmp_path / "a/run").rglob("*.png")
    assert written.name == f"{0:012d}.png"


@pytest.mark.parametrize("name", ["a.png", "sub/a.jpg", "weimar_000_gtFine.png"])
def test_ordinary_names_are_kept(name: str) -> None:
    assert safe_name(name, 7, suffix=".png") == str(Path(name).with_suffix(".png"))


RLE = {"size": [H, W], "counts": [20, 30, H * W - 50]}


def videos(change: Change = lambda content: None) -> dict[str, Any]:
    content: dict[str, Any] = {
        "videos": [
            {"id": v, "height": H, "width": W, "file_names": [f"{v}/{t}.jpg" for t in range(2)]} for v in (1, 2)
        ],
        "annotations": [
            {"id": 5 + v, "video_id": v, "category_id": 3, "segmentations": [dict(RLE), None]} for v in (1, 2)
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}],
    }
    change(content)
    return content


def track(**changes: Any) -> Change:
    return lambda content: content["annotations"][0].update(changes)


VIDEOS: dict[str, tuple[Change, str]] = {
    "video id twice": (lambda c: c["videos"][1].update(id=1.0), "video 1.0: the id occurs twice"),
    "track id twice": (track(id=7), "annotation 7: the id occurs twice"),
    "frame twice": (lambda c: c["videos"][0].update(file_names=["a.jpg", "a.jpg"]), "video 1: frame a.jpg is listed"),
    "frames that are no names": (
        lambda c: c["videos"][0].update(file_names=["a.jpg", 3]),
        "must be the name of a file",
    ),
    "two categories of one name": (
        lambda c: [c["categories"][1].update(name="cat"), c["annotations"][1].update(category_id=4)],
        r"categories \[3, 4\] have the same name 'cat'",
    ),
    "code too short": (
        track(segmentations=[{"size": [H, W], "counts": "0"}, None]),
        "annotation 6: frame 0: RLE counts",
    ),
    "far coordinate": (track(segmentations=[[[0, 0, 2.0**31, 0, 5, 5]], None]), "annotation 6: frame 0: .* by far"),
    "video not listed": (track(video_id=9), "annotation 6: video 9 is not listed"),
    "boxes of fewer frames": (track(bboxes=[[0, 0, 1, 1]]), "'bboxes' must hold one entry for each of 2 frames"),
    "box that is none": (track(bboxes=[[0, 0, 1], None]), "bbox must be four finite numbers"),
    "too large": (lambda c: c["videos"][0].update(height=10**9), "video 1: .* more than"),
}


@pytest.mark.parametrize("case", VIDEOS)
def test_videos_are_refused_alike(case: str, tmp_path: Path) -> None:
    change, message = VIDEOS[case]
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames/a.jpg").touch()
    (tmp_path / "videos.json").write_text(json.dumps(videos(change)))
    (tmp_path / "found.json").write_text("[]")
    name = "videos_that_are_wrong"
    try:
        with pytest.raises(DatasetError, match=message):
            load_ytvis_json(tmp_path / "videos.json", tmp_path / "frames", name)
        with pytest.raises(DatasetError, match=message):
            evaluate_video(tmp_path / "videos.json", tmp_path / "found.json")
    finally:
        MetadataCatalog.remove(name) if name in MetadataCatalog else None


VIDEO_FORMS: dict[str, Change] = {
    "plain": lambda c: None,
    "null lists": track(bboxes=None, areas=None, iscrowd=None),
    "numbers as floats": track(id=6.0, video_id=1.0, category_id=3.0, iscrowd=0.0),
    "numbers as text": track(video_id="1", category_id="3", iscrowd="0"),
    "ids as names": track(id="first"),
    "length null": lambda c: c["videos"][0].update(length=None),
    "length as text": lambda c: c["videos"][0].update(length="2"),
    "areas that are none": track(areas=[float("nan"), None]),
    "null for the empty": track(segmentations=[dict(RLE), []]),
}


@pytest.mark.parametrize("form", VIDEO_FORMS)
def test_video_forms_train_and_evaluate_alike(form: str, tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames/a.jpg").touch()
    (tmp_path / "videos.json").write_text(json.dumps(videos(VIDEO_FORMS[form])))
    found = [{**a, "score": 0.5} for a in videos()["annotations"]]
    (tmp_path / "found.json").write_text(json.dumps(found))
    name = "video_forms"
    try:
        records = load_ytvis_json(tmp_path / "videos.json", tmp_path / "frames", name)
        assert MetadataCatalog.get(name).thing_classes == ["cat", "dog"]
    finally:
        MetadataCatalog.remove(name)
    (seen,), nothing = records[0]["annotations"]
    assert (seen["category_id"], seen["iscrowd"], nothing) == (0, 0, [])
    assert isinstance(seen["id"], int)
    assert evaluate_video(tmp_path / "videos.json", tmp_path / "found.json")["segm"]["AP"] == pytest.approx(100)


def write_labelme(root: Path, *shapes: dict[str, Any], **fields: Any) -> Path:
    root.mkdir()
    for number in range(2):
        Image.fromarray(np.zeros((H, W, 3), np.uint8)).save(root / f"{number}.png")
        content = {"imagePath": f"{number}.png", "imageHeight": H, "imageWidth": W, "shapes": [*shapes], **fields}
        if number:
            content |= {
                "imagePath": "1.png",
                "shapes": [{"label": "x", "points": [[1, 1], [8, 8]], "shape_type": "rectangle"}],
            }
        (root / f"{number}.json").write_text(json.dumps(content))
    return root


def picture(height: int, width: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width), 255, np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"points": [[1, 1], [2.0**31, 2], [3, 9]]}, r"0\.json: shape 0 \(x\): points must lie in or near"),
        ({"points": [[1, 1], [1e6, 2], [3, 9]]}, r"0\.json: shape 0 \(x\): a polygon leaves the image by far"),
        ({"points": [[1, 1], [float("inf"), 2]], "shape_type": "circle"}, "points must lie in or near"),
        ({"points": [[1, 1], [5, 5]], "shape_type": "mask", "mask": "AAAA"}, "'mask' must be a picture in base64"),
        ({"points": [[1, 1], [5, 5]], "shape_type": ["mask"]}, "shape_type must be one of"),
        ({"points": [[1, 1], [5, 5], [7, 1]], "group_id": [1]}, "'group_id' must be a whole number or text"),
        ({"points": [[1, 1], [5, 5], [7, 1]], "label": None}, "'label' must be a whole number or text, found None"),
        ({"points": None}, "points must be pairs of numbers, found None"),
    ],
)
def test_labelme_shapes_are_refused(shape: dict[str, Any], message: str, tmp_path: Path) -> None:
    root = write_labelme(tmp_path / "data", {"label": "x", **shape})
    with pytest.raises(DatasetError, match=message):
        read_own_data(root)


@pytest.mark.parametrize(
    ("shape", "pixels", "note"),
    [
        ({"points": [[4, 2], [10, 5], [7, 11], [1, 8]], "shape_type": "oriented_rectangle"}, 45, None),
        ({"points": [[10, 8], [16, 12]], "shape_type": "mask", "mask": picture(9, 9)}, 5 * 7, "clipped 1 shapes"),
        ({"points": [[-3, -2], [5, 6]], "shape_type": "mask", "mask": picture(9, 9)}, 7 * 6, "clipped 1 shapes"),
        ({"points": [[-20, 2], [-10, 2], [-10, 9]]}, None, "left out 1 shapes: no pixel in the image"),
    ],
)
def test_labelme_shapes_at_the_edge_are_clipped(
    shape: dict[str, Any], pixels: int | None, note: str | None, tmp_path: Path
) -> None:
    dataset = read_own_data(write_labelme(tmp_path / "data", {"label": "x", **shape}, imageHeight=str(H)))
    (image,) = [i for i in dataset.parts["train"] if i.file.stem == "0"]
    sums = segment_masks(image).sum((1, 2)).tolist()
    assert sums == [] if pixels is None else sums == [pytest.approx(pixels, rel=0.05)]
    assert [n.startswith(note or "") for n in dataset.notes] == [True] * (note is not None)


def test_labelme_image_is_annotated_once(tmp_path: Path) -> None:
    root = write_labelme(tmp_path / "data")
    (root / "again.json").write_text((root / "1.json").read_text())
    with pytest.raises(DatasetError, match=r"images annotated twice: .*1\.png by .*1\.json and .*again\.json"):
        read_own_data(root)
