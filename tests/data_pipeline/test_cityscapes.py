"""Cityscapes from a tiny tree: preparation, and what the registered names load."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former.commands.prepare import run_preparation
from mask2former.config import CfgNode
from mask2former.data import DatasetCatalog, DatasetMapper
from mask2former.errors import DatasetError
from mask2former.files.maps import read_label_map, read_panoptic_ids
from mask2former.structures import segmentation_to_bitmask
from tests.data_pipeline.prepared_trees import SIZE, cityscapes_tree


@pytest.fixture
def ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return cityscapes_tree(tmp_path)


def test_cityscapes_instances_need_no_preparation(ids: np.ndarray) -> None:
    dicts = DatasetCatalog.get("cityscapes_fine_instance_seg_train")
    assert [d["image_id"] for d in dicts] == ["aachen_000000_000019", "ulm_000000_000019"]
    assert (dicts[0]["height"], dicts[0]["width"]) == SIZE
    annotations = dicts[0]["annotations"]
    assert [(a["category_id"], a["iscrowd"]) for a in annotations] == [(0, 1), (2, 0), (2, 0)]
    assert annotations[2]["bbox"] == [26, 6, 4, 6]
    for annotation, value in zip(annotations, (24, 26_000, 26_001), strict=True):
        assert np.array_equal(segmentation_to_bitmask(annotation["segmentation"], *SIZE), ids == value)


def test_cityscapes_instances_train(ids: np.ndarray, cfg: CfgNode) -> None:
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_instance"
    cfg.DATASETS.TRAIN = ["cityscapes_fine_instance_seg_train"]
    sample = DatasetMapper.from_config(cfg)(DatasetCatalog.get(cfg.DATASETS.TRAIN[0])[0])
    assert sample["instances"].gt_classes.tolist() == [2, 2]


def test_cityscapes_labels_are_prepared_and_loaded(ids: np.ndarray, tmp_path: Path, cfg: CfgNode) -> None:
    with pytest.raises(DatasetError, match=r"aachen_000000_000019_gtFine_labelTrainIds.png; made by: .*cityscapes.py"):
        DatasetCatalog.get("cityscapes_fine_sem_seg_train")
    run_preparation("cityscapes")
    for split in ("train", "val", "test"):
        dicts = DatasetCatalog.get(f"cityscapes_fine_sem_seg_{split}")
        assert len(dicts) == 2
        labels = read_label_map(dicts[1]["sem_seg_file_name"])
        raw = np.where(ids >= 1000, ids // 1000, ids)
        expected = np.full(SIZE, 255)
        for label, train_id in ((7, 0), (23, 10), (24, 11), (26, 13)):
            expected[raw == label] = train_id
        assert np.array_equal(labels, expected)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 19
    cfg.DATASETS.TRAIN = ["cityscapes_fine_sem_seg_train"]
    sample = DatasetMapper.from_config(cfg)(DatasetCatalog.get(cfg.DATASETS.TRAIN[0])[0])
    assert sample["instances"].gt_classes.tolist() == [0, 10, 11, 13]


def test_cityscapes_panoptic_is_prepared_and_loaded(ids: np.ndarray, tmp_path: Path, cfg: CfgNode) -> None:
    run_preparation("cityscapes")
    assert not (tmp_path / "cityscapes/gtFine/cityscapes_panoptic_test.json").exists()
    dicts = DatasetCatalog.get("cityscapes_fine_panoptic_val")
    record = dicts[0]
    assert record["file_name"].endswith("val/aachen/aachen_000000_000019_leftImg8bit.png")
    assert record["sem_seg_file_name"].endswith("val/aachen/aachen_000000_000019_gtFine_labelTrainIds.png")
    assert [(s["id"], s["category_id"], s["isthing"], s["iscrowd"]) for s in record["segments_info"]] == [
        (7, 0, False, 0),
        (23, 10, False, 0),
        (24, 11, True, 1),
        (26_000, 13, True, 0),
        (26_001, 13, True, 0),
    ]
    prepared = read_panoptic_ids(record["pan_seg_file_name"])
    kept = np.isin(ids, [7, 23, 24, 26_000, 26_001])
    assert np.array_equal(prepared, np.where(kept, ids, 0))
    content = json.loads((tmp_path / "cityscapes/gtFine/cityscapes_panoptic_val.json").read_text())
    assert content["images"][0]["id"] == "aachen_000000_000019"
    assert content["annotations"][0]["file_name"] == "aachen_000000_000019_gtFine_panoptic.png"
    car = content["annotations"][0]["segments_info"][4]
    assert (car["area"], car["bbox"]) == (24, [26, 6, 4, 6])
    assert len(content["categories"]) == 19
    assert sum(c["isthing"] for c in content["categories"]) == 8
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_panoptic"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 19
    cfg.DATASETS.TRAIN = ["cityscapes_fine_panoptic_val"]
    sample = DatasetMapper.from_config(cfg)(record)
    assert sample["instances"].gt_classes.tolist() == [0, 10, 13, 13]


def test_cityscapes_image_without_annotation_is_named(ids: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "cityscapes/gtFine/train/ulm/ulm_000000_000019_gtFine_instanceIds.png").unlink()
    with pytest.raises(DatasetError, match=r"instanceIds file of .*ulm_000000_000019_leftImg8bit.png not found"):
        DatasetCatalog.get("cityscapes_fine_instance_seg_train")


def test_cityscapes_panoptic_wrong_entries_are_named(ids: np.ndarray, tmp_path: Path) -> None:
    run_preparation("cityscapes", splits=["train"])
    json_file = tmp_path / "cityscapes/gtFine/cityscapes_panoptic_train.json"
    content = json.loads(json_file.read_text())
    annotations = content["annotations"]
    for change, message in (
        ([{**annotations[0], "image_id": "rome_1"}], "image 'rome_1' is not listed"),
        ([{"image_id": "a"}], "missing 'file_name', 'segments_info'"),
        ([{**annotations[0], "segments_info": [{"id": 1, "category_id": 99}]}], "category id 99"),
        ([], "holds no annotation"),
    ):
        json_file.write_text(json.dumps({**content, "annotations": change}))
        with pytest.raises(DatasetError, match=message):
            DatasetCatalog.get("cityscapes_fine_panoptic_train")


def test_cityscapes_map_that_is_no_label_map_is_named(ids: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "cityscapes/gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png"
    Image.new("RGB", SIZE[::-1]).save(path)
    with pytest.raises(
        DatasetError, match=r"ulm_000000_000019_gtFine_labelIds.png: a label map has one channel of class ids"
    ):
        run_preparation("cityscapes", splits=["val"])
