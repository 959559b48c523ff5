"""COCO's preparations on tiny trees, read back through the registered names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former.commands.prepare import run_preparation
from mask2former.config import CfgNode
from mask2former.data import DatasetCatalog, DatasetMapper
from mask2former.errors import DatasetError
from mask2former.files.maps import read_label_map
from tests.data_pipeline.prepared_trees import coco_stuff_10k_tree, coco_tree


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def test_coco_semantic_holds_contiguous_classes(root: Path, cfg: CfgNode) -> None:
    ids = coco_tree(root)
    run_preparation("coco_semantic")
    for split in ("train", "val"):
        dicts = DatasetCatalog.get(f"coco_2017_{split}_panoptic_with_sem_seg")
        labels, empty = (read_label_map(d["sem_seg_file_name"]) for d in dicts)
        assert labels.dtype == np.uint8
        for segment_id, label in ((0, 255), (7, 132), (300, 0), (70_000, 79)):
            assert (labels[ids == segment_id] == label).all()
        assert (empty == 255).all()
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 133
    cfg.DATASETS.TRAIN = ["coco_2017_train_panoptic_with_sem_seg"]
    sample = DatasetMapper.from_config(cfg)(DatasetCatalog.get(cfg.DATASETS.TRAIN[0])[0])
    assert sample["instances"].gt_classes.tolist() == [0, 79, 132]


def test_coco_stuff_holds_things_as_one_class(root: Path) -> None:
    ids = coco_tree(root, ("val2017",))
    run_preparation("coco_stuff")
    (first, empty) = DatasetCatalog.get("coco_2017_val_panoptic_stuffonly")
    labels = read_label_map(first["sem_seg_file_name"])
    for segment_id, label in ((0, 255), (7, 53), (300, 0), (70_000, 0)):
        assert (labels[ids == segment_id] == label).all()
    assert (read_label_map(empty["sem_seg_file_name"]) == 255).all()
    separated = DatasetCatalog.get("coco_2017_val_panoptic_separated")
    assert [a["category_id"] for a in separated[0]["annotations"]] == [0, 79]
    assert separated[0]["sem_seg_file_name"] == first["sem_seg_file_name"]
    (root / "coco/panoptic_stuff_val2017/000000000002.png").unlink()
    with pytest.raises(DatasetError, match=r"image 2 has no label file 000000000002.png"):
        DatasetCatalog.get("coco_2017_val_panoptic_separated")


def test_coco_panoptic_and_instances_need_no_preparation(root: Path) -> None:
    coco_tree(root, ("train2017",))
    panoptic = DatasetCatalog.get("coco_2017_train_panoptic")
    assert [s["category_id"] for s in panoptic[0]["segments_info"]] == [132, 0, 79]
    assert "sem_seg_file_name" not in panoptic[0]
    assert [len(d["annotations"]) for d in DatasetCatalog.get("coco_2017_train")] == [2, 0]


def test_coco_test_images_have_no_annotations(root: Path) -> None:
    coco_tree(root, ("train2017",))
    dicts = DatasetCatalog.get("coco_2017_test")
    assert [d["image_id"] for d in dicts] == [1, 2]
    assert "annotations" not in dicts[0]


def test_coco_semantic_of_a_foreign_category_is_an_error(root: Path) -> None:
    coco_tree(root, ("val2017",))
    json_file = root / "coco/annotations/panoptic_val2017.json"
    json_file.write_text(json_file.read_text().replace('"category_id": 90', '"category_id": 91'))
    with pytest.raises(DatasetError, match=r"panoptic_val2017.json: 000000000001.png: category id 91"):
        run_preparation("coco_semantic")


def test_coco_stuff_10k_is_prepared_and_loaded(root: Path) -> None:
    raw = coco_stuff_10k_tree(root)
    run_preparation("coco_stuff_10k")
    for split, number in (("train", 77), ("test", 78)):
        (record,) = DatasetCatalog.get(f"coco_2017_{split}_stuff_10k_sem_seg")
        assert record["file_name"].endswith(f"images_detectron2/{split}/COCO_train2014_{number:012d}.jpg")
        labels = read_label_map(record["sem_seg_file_name"])
        for value, label in ((0, 255), (1, 0), (182, 170)):
            assert (labels[raw == value] == label).all()


@pytest.mark.parametrize(("damage", "message"), [(b"MATLAB", "cannot be read"), (None, "not found")])
def test_coco_stuff_10k_damaged_labels_are_named(root: Path, damage: bytes | None, message: str) -> None:
    coco_stuff_10k_tree(root)
    path = root / "coco/coco_stuff_10k/annotations/COCO_train2014_000000000077.mat"
    path.unlink() if damage is None else path.write_bytes(damage)
    with pytest.raises(DatasetError, match=f"label file {message}: .*000000000077.mat"):
        run_preparation("coco_stuff_10k", splits=["train"])


def test_coco_stuff_10k_labels_of_another_size_are_named(root: Path) -> None:
    coco_stuff_10k_tree(root)
    Image.new("RGB", (5, 5)).save(root / "coco/coco_stuff_10k/images/COCO_train2014_000000000077.jpg")
    with pytest.raises(DatasetError, match=r"77.mat: \(height, width\) is \(21, 30\), that of .*77.jpg is \(5, 5\)"):
        run_preparation("coco_stuff_10k", splits=["train"])
