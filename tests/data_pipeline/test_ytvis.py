"""Videos in YouTube-VIS format as dataset dicts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mask2former.data import DatasetCatalog
from mask2former.data.datasets.ytvis import load_ytvis_json
from mask2former.errors import DatasetError
from mask2former.structures import MetadataCatalog

RLE = {"size": [6, 8], "counts": [40, 4, 4]}


def _content() -> dict[str, Any]:
    videos = [
        {"id": 3, "height": 6, "width": 8, "length": 3, "file_names": [f"a/{i:05d}.jpg" for i in range(3)]},
        {"id": 5, "height": 6, "width": 8, "length": 1, "file_names": ["b/00000.jpg"]},
    ]
    tracks = [
        {"id": 1, "video_id": 3, "category_id": 40, "segmentations": [RLE, None, RLE], "bboxes": [[0, 0, 2, 2]] * 3},
        {"id": 2, "video_id": 3, "category_id": 1, "iscrowd": 1, "segmentations": [None, None, RLE]},
    ]
    return {"videos": videos, "annotations": tracks, "categories": [{"id": 40, "name": "b"}, {"id": 1, "name": "a"}]}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for split in ("train", "valid"):
        frames = tmp_path / "ytvis_2021" / split / "JPEGImages" / "a"
        frames.mkdir(parents=True)
        (frames / "00000.jpg").touch()
    (tmp_path / "ytvis_2021" / "train.json").write_text(json.dumps(_content()))
    (tmp_path / "ytvis_2021" / "valid.json").write_text(json.dumps({"videos": _content()["videos"]}))
    return tmp_path


def test_ytvis_videos_become_dataset_dicts(root: Path) -> None:
    first, second = DatasetCatalog.get("ytvis_2021_train")
    assert first["file_names"][2] == str(root / "ytvis_2021/train/JPEGImages/a/00002.jpg")
    assert (first["height"], first["width"], first["length"], first["video_id"]) == (6, 8, 3, 3)
    seen = [[(o["id"], o["category_id"], o["iscrowd"]) for o in frame] for frame in first["annotations"]]
    assert seen == [[(1, 39, 0)], [], [(1, 39, 0), (2, 0, 1)]]
    assert first["annotations"][0][0]["bbox"] == [0, 0, 2, 2]
    assert "bbox" not in first["annotations"][2][1]
    assert second["annotations"] == [[]]


def test_ytvis_validation_videos_have_no_annotations(root: Path) -> None:
    dicts = DatasetCatalog.get("ytvis_2021_val")
    assert [d["length"] for d in dicts] == [3, 1]
    assert all("annotations" not in d for d in dicts)


def test_ytvis_unknown_name_takes_classes_from_the_file(root: Path) -> None:
    folder = root / "ytvis_2021"
    dicts = load_ytvis_json(folder / "train.json", folder / "train/JPEGImages", "tiny_videos")
    assert MetadataCatalog.get("tiny_videos").thing_classes == ["a", "b"]
    assert dicts[0]["annotations"][0][0]["category_id"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["videos"][0].update(length=2), "video 3: 'file_names' must list"),
        (lambda c: c["videos"][0].update(file_names=[]), "video 3: 'file_names' must list"),
        (lambda c: c["videos"][0].pop("height"), "video 3: missing 'height'"),
        (lambda c: c["annotations"][0].update(category_id=41), "annotation 1: category id 41 has no class"),
        (lambda c: c["annotations"][0].update(video_id=9), "annotation 1: video 9 is not listed"),
        (
            lambda c: c["annotations"][1]["segmentations"].pop(),
            "annotation 2: 'segmentations' must hold .* 3 frames of video 3",
        ),
        (lambda c: c["annotations"][0].pop("segmentations"), "annotation 1: missing 'segmentations'"),
        (lambda c: c.pop("videos"), "expected a list under 'videos'"),
    ],
)
def test_ytvis_wrong_entry_is_named(root: Path, change: Callable[[Any], None], message: str) -> None:
    content = _content()
    change(content)
    (root / "ytvis_2021" / "train.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=message) as caught:
        DatasetCatalog.get("ytvis_2021_train")
    assert "train.json" in str(caught.value)
