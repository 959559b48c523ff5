from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from mask2former.inference.outputs import save_instances, save_panoptic, save_semantic
from mask2former.structures import Boxes, Instances, Metadata, masks_to_boxes_xyxy, rgb_to_id

METADATA = Metadata(
    "saved",
    thing_classes=["cat"],
    stuff_classes=["cat", "sky"],
    thing_dataset_id_to_contiguous_id={17: 0},
    stuff_dataset_id_to_contiguous_id={17: 0, 92: 1},
)


def test_save_panoptic_reads_back_equal(tmp_path: Path) -> None:
    ids = torch.zeros(5, 7, dtype=torch.int32)
    ids[:2], ids[2:, :3] = 1, 70000
    infos = [
        {"id": 1, "category_id": 1, "isthing": False, "score": 0.5},
        {"id": 70000, "category_id": 0, "isthing": True},
    ]
    png, description = save_panoptic(tmp_path / "a", (ids, infos), metadata=METADATA, image_name="a.jpg")
    assert np.array_equal(rgb_to_id(np.asarray(Image.open(png))), ids.numpy())
    content = json.loads(description.read_text())
    assert content["image"] == "a.jpg"
    assert [(s["category_id"], s["category_name"], s["area"]) for s in content["segments_info"]] == [
        (92, "sky", 14),
        (17, "cat", 9),
    ]
    assert [s["score"] for s in content["segments_info"]] == [0.5, None]


def test_save_panoptic_empty_result(tmp_path: Path) -> None:
    png, description = save_panoptic(tmp_path / "a", (np.zeros((3, 4), dtype=np.int32), []))
    assert not np.asarray(Image.open(png)).any()
    assert json.loads(description.read_text())["segments_info"] == []


def test_save_instances_reads_back_equal(tmp_path: Path) -> None:
    masks = torch.zeros(3, 9, 11, dtype=torch.bool)
    masks[0, 2:5, 3:8], masks[1, :, :2] = True, True
    instances = Instances(
        (9, 11),
        pred_masks=masks,
        scores=torch.tensor([0.9, 0.6, 0.1]),
        pred_classes=torch.tensor([0, 1, 0]),
        pred_boxes=Boxes(masks_to_boxes_xyxy(masks)),
    )
    (path,) = save_instances(tmp_path / "a", instances, metadata=METADATA, image_name="a.jpg", score_threshold=0.5)
    records = json.loads(path.read_text())
    assert [record["category_id"] for record in records] == [17, 92]
    assert records[0]["bbox"] == [3, 2, 5, 3]
    for record, mask in zip(records, masks, strict=False):
        assert np.array_equal(coco_mask.decode(record["segmentation"]).astype(bool), mask.numpy())


def test_save_instances_empty(tmp_path: Path) -> None:
    masks = torch.zeros(0, 9, 11, dtype=torch.bool)
    empty = Instances(
        (9, 11),
        pred_masks=masks,
        scores=torch.zeros(0),
        pred_classes=torch.zeros(0, dtype=torch.int64),
        pred_boxes=Boxes(torch.zeros(0, 4)),
    )
    (path,) = save_instances(tmp_path / "a", empty)
    assert json.loads(path.read_text()) == []


def test_save_semantic_scores_and_many_classes(tmp_path: Path) -> None:
    scores = torch.rand(3, 5, 7)
    (png,) = save_semantic(tmp_path / "few", scores)
    assert np.array_equal(np.asarray(Image.open(png)), scores.argmax(0).numpy())
    labels = np.arange(35, dtype=np.int64).reshape(5, 7) * 10
    (png,) = save_semantic(tmp_path / "many", labels)
    assert np.array_equal(np.asarray(Image.open(png)), labels)


def test_save_leaves_no_partial_file(tmp_path: Path) -> None:
    save_semantic(tmp_path / "a", np.zeros((2, 2), dtype=np.int64))
    assert [path.name for path in tmp_path.iterdir()] == ["a_semantic_labels.png"]
