"""ADE20K's preparations on tiny trees, read back through the registered names."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former.commands.prepare import run_preparation
from mask2former.config import CfgNode
from mask2former.data import DatasetCatalog, DatasetMapper
from mask2former.data.preparation.ade20k import read_train_ids
from mask2former.errors import DatasetError
from mask2former.files.images import read_image_size
from mask2former.files.maps import read_label_map, read_panoptic_ids
from mask2former.structures import segmentation_to_bitmask
from tests.data_pipeline.prepared_trees import SIZE, ade20k_full_tree, ade20k_tree

BED, PERSON, WALL, SKY = 7, 12, 0, 2


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def _map_first(cfg: CfgNode, name: str, mapper: str) -> list[int]:
    cfg.INPUT.DATASET_MAPPER_NAME = mapper
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 150
    cfg.DATASETS.TRAIN = [name]
    sample = DatasetMapper.from_config(cfg)(DatasetCatalog.get(name)[0])
    return sample["instances"].gt_classes.tolist()


def test_ade20k_labels_move_down_by_one(root: Path, cfg: CfgNode) -> None:
    ade20k_tree(root)
    run_preparation("ade20k_sem_seg")
    first, second = DatasetCatalog.get("ade20k_sem_seg_val")
    labels = read_label_map(first["sem_seg_file_name"])
    assert labels[0, 0] == WALL
    assert labels[20, 0] == SKY
    assert labels[5, 5] == BED
    labels = read_label_map(second["sem_seg_file_name"])
    assert (labels[:10] == WALL).all()
    assert (labels[10:] == 255).all()
    assert _map_first(cfg, "ade20k_sem_seg_train", "mask_former_semantic") == [WALL, SKY, BED]


def test_ade20k_label_without_class_is_named(root: Path) -> None:
    ade20k_tree(root, ("training",))
    Image.new("L", (5, 5), 151).save(root / "ADEChallengeData2016/annotations/training/ADE_train_00000001.png")
    with pytest.raises(DatasetError, match=r"ADE_train_00000001.png: labels \[151\] have no class"):
        run_preparation("ade20k_sem_seg")


def test_ade20k_instances_are_prepared_and_loaded(root: Path, cfg: CfgNode) -> None:
    ade20k_tree(root)
    run_preparation("ade20k_ins_seg")
    content = json.loads((root / "ADEChallengeData2016/ade20k_instance_val.json").read_text())
    assert len(content["categories"]) == 100
    assert content["categories"][0] == {"id": BED, "name": "bed"}
    assert [a["id"] for a in content["annotations"]] == [1, 2, 3]
    assert [a["category_id"] for a in content["annotations"]] == [BED, BED, PERSON]
    assert content["annotations"][2]["area"] == 40
    first, empty = DatasetCatalog.get("ade20k_instance_val")
    assert (first["image_id"], first["height"], first["width"]) == ("ADE_val_00000000", *SIZE)
    assert [(a["category_id"], a["bbox"]) for a in first["annotations"]] == [
        (0, [5, 6, 5, 9]),
        (0, [10, 6, 5, 9]),
        (3, [20, 12, 5, 8]),
    ]
    mask = segmentation_to_bitmask(first["annotations"][2]["segmentation"], *SIZE)
    assert mask[12:20, 20:25].all()
    assert mask.sum() == 40
    assert empty["annotations"] == []
    assert _map_first(cfg, "ade20k_instance_train", "mask_former_instance") == [0, 0, 3]


def test_ade20k_panoptic_lays_things_over_stuff(root: Path, cfg: CfgNode) -> None:
    ade20k_tree(root)
    run_preparation("ade20k_pan_seg")
    with pytest.raises(DatasetError, match=r"annotations_detectron2/validation not found .*prepare_ade20k_sem_seg.py"):
        DatasetCatalog.get("ade20k_panoptic_val")
    run_preparation("ade20k_sem_seg")
    first, second = DatasetCatalog.get("ade20k_panoptic_val")
    assert first["sem_seg_file_name"].endswith("annotations_detectron2/validation/ADE_val_00000000.png")
    segments = {s["id"]: s for s in first["segments_info"]}
    assert sorted((s["category_id"], s["isthing"]) for s in segments.values()) == [
        (WALL, False),
        (SKY, False),
        (BED, True),
        (BED, True),
        (PERSON, True),
    ]
    ids = read_panoptic_ids(first["pan_seg_file_name"])
    assert set(np.unique(ids).tolist()) == {0, *segments}
    assert segments[int(ids[13, 22])]["category_id"] == PERSON  # over the sky
    assert ids[7, 6] != ids[7, 12]
    assert (ids[5, 5:15] == 0).all()  # of a thing class, but of no instance
    for segment in segments.values():
        assert segment["area"] == (ids == segment["id"]).sum()
    assert [s["category_id"] for s in second["segments_info"]] == [WALL]
    assert _map_first(cfg, "ade20k_panoptic_train", "mask_former_panoptic") == [WALL, SKY, BED, BED, PERSON]


def test_ade20k_instance_without_class_is_named(root: Path) -> None:
    ade20k_tree(root, ("validation",))
    path = root / "ADEChallengeData2016/annotations_instance/validation/ADE_val_00000001.png"
    Image.new("RGB", SIZE[::-1], (101, 1, 0)).save(path)
    for name in ("ade20k_ins_seg", "ade20k_pan_seg"):
        with pytest.raises(DatasetError, match=r"ADE_val_00000001.png: labels \[101\] have no class"):
            run_preparation(name)
    Image.new("L", SIZE[::-1]).save(path)
    with pytest.raises(DatasetError, match=r"ADE_val_00000001.png: .* RGB, found 1 channel"):
        run_preparation("ade20k_ins_seg")


def test_ade20k_maps_of_different_size_are_named(root: Path) -> None:
    ade20k_tree(root, ("validation",))
    Image.new("L", (4, 4)).save(root / "ADEChallengeData2016/annotations/validation/ADE_val_00000001.png")
    with pytest.raises(DatasetError, match=r"annotations_instance.*\(21, 30\), .*ADE_val_00000001.png has \(4, 4\)"):
        run_preparation("ade20k_pan_seg")


def test_ade20k_full_is_prepared_and_loaded(root: Path) -> None:
    ade20k_full_tree(root)
    run_preparation("ade20k_full_sem_seg")
    small, large = DatasetCatalog.get("ade20k_full_sem_seg_train")
    assert read_image_size(small["file_name"]) == (9, 7)
    labels = read_label_map(small["sem_seg_file_name"])
    assert [int(labels[row, 0]) for row in (0, 1, 3, 5, 8)] == [65535, 0, 65535, 2, 2]
    assert read_image_size(large["file_name"]) == (512, 547)
    assert read_label_map(large["sem_seg_file_name"]).shape == (512, 547)
    (validation,) = DatasetCatalog.get("ade20k_full_sem_seg_val")
    assert read_label_map(validation["sem_seg_file_name"]).shape == SIZE


def test_ade20k_full_index_is_read_without_executing(tmp_path: Path) -> None:
    index = tmp_path / "index_ade20k.pkl"
    with pytest.raises(DatasetError, match=r"not found: .*index_ade20k.pkl"):
        read_train_ids(index)
    index.write_bytes(pickle.dumps({"objectnames": ["wall", "sky"]}))
    with pytest.raises(DatasetError, match=r"lacks 845 of 847 class names"):
        read_train_ids(index)
    marker = tmp_path / "executed"
    index.write_bytes(b"cpathlib\nPath\n(V" + str(marker).encode() + b"\ntR.")
    with pytest.raises(DatasetError, match=r"cannot be read: .*it holds a pathlib.Path"):
        read_train_ids(index)
    for content in (b"", b"\x80\x04damaged", pickle.dumps([1])):
        index.write_bytes(content)
        with pytest.raises(DatasetError, match="cannot be read"):
            read_train_ids(index)
