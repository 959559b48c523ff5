"""What the config keys of own data register: dataset dicts, metadata, and an index without what does not train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former.config import CfgNode
from mask2former.data import DatasetMapper, register_sem_seg
from mask2former.data.catalog import DatasetCatalog, MetadataCatalog
from mask2former.data.own_data import ClassChoice, register_own_data
from mask2former.engine.own_data import OwnDataRequest, resolve_own_data
from mask2former.errors import ConfigError
from mask2former.evaluation import SemSegEvaluator
from mask2former.structures import rgb_to_id
from tests.data_pipeline import own_data_trees as trees

MAPPERS = {"semantic": "mask_former_semantic", "instance": "coco_instance_lsj", "panoptic": "coco_panoptic_lsj"}


def resolve(cfg: CfgNode, path: Path, task: str, tmp_path: Path, **choice: Any) -> CfgNode:
    cfg.INPUT.DATASET_MAPPER_NAME = MAPPERS[task]
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    resolved = resolve_own_data(cfg, OwnDataRequest(str(path), cfg, choice=ClassChoice(**choice)))
    register_own_data(resolved)
    return resolved


def test_ids_of_masks_become_classes_in_mapper_and_evaluator(cfg: CfgNode, tmp_path: Path) -> None:
    cfg.SOLVER.IMS_PER_BATCH = 2
    resolved = resolve(cfg, trees.write_png_tree(tmp_path / "tree"), "semantic", tmp_path)
    (train_name,), (valid_name,) = resolved.DATASETS.TRAIN, resolved.DATASETS.TEST
    records = DatasetCatalog.get(train_name)
    assert [Path(record["file_name"]).name for record in records] == ["0.jpg", "1.jpg"]
    sample = DatasetMapper.from_config(resolved)(records[0], np.random.default_rng(0))
    assert sample["instances"].gt_classes.tolist() == [0, 1, 2]
    record = DatasetCatalog.get(valid_name)[0]
    labels = np.select([trees.labels_of(100) == i for i in (3, 7, 20)], [0, 1, 2], 0)
    evaluator = SemSegEvaluator(valid_name)
    evaluator.process([record], [{"sem_seg": np.eye(3)[labels].transpose(2, 0, 1)}])
    results = evaluator.evaluate()
    assert results is not None
    assert results["sem_seg"]["mIoU"] == pytest.approx(100.0)


def test_ignored_classes_of_panoptic_data_are_void(cfg: CfgNode, tmp_path: Path) -> None:
    data = trees.write_coco_panoptic(tmp_path / "data")
    resolved = resolve(cfg, data, "panoptic", tmp_path, ignored=("disc",))
    metadata = MetadataCatalog.get(resolved.DATASETS.TRAIN[0])
    assert metadata.stuff_classes == ["box", "sky"]
    assert metadata.thing_dataset_id_to_contiguous_id == {7: 0}
    record = DatasetCatalog.get(resolved.DATASETS.TRAIN[0])[0]
    assert [(s["category_id"], s["isthing"]) for s in record["segments_info"]] == [(1, False), (0, True)]
    ids = rgb_to_id(np.asarray(Image.open(record["pan_seg_file_name"])))
    assert set(np.unique(ids)) == {0, 1, 300}
    np.testing.assert_array_equal(ids == 1, trees.scene(0)[0] == 1)


def test_semantic_truth_is_derived_from_panoptic_data(cfg: CfgNode, tmp_path: Path) -> None:
    resolved = resolve(cfg, trees.write_coco_panoptic(tmp_path / "data"), "panoptic", tmp_path)
    name = resolved.DATASETS.TEST[0]
    evaluator = SemSegEvaluator(name)
    for record in DatasetCatalog.get(name):
        ids, segments = trees.scene(int(Path(record["file_name"]).stem))
        labels = np.zeros(ids.shape, int)
        for segment in segments:
            labels[ids == segment["id"]] = {7: 0, 20: 1, 3: 2}[segment["category_id"]]
        evaluator.process([record], [{"sem_seg": np.eye(3)[labels].transpose(2, 0, 1)}])
    results = evaluator.evaluate()
    assert results is not None
    assert results["sem_seg"]["mIoU"] == pytest.approx(100.0)


def test_ignored_classes_of_instances_are_left_out(cfg: CfgNode, tmp_path: Path) -> None:
    data = trees.write_coco_instances(tmp_path / "data")
    path = data / "annotations/instances_train2017.json"  # its images lie beside its folder
    resolved = resolve(cfg, path, "instance", tmp_path, ignored=("20",))
    record = DatasetCatalog.get(resolved.DATASETS.TRAIN[0])[0]
    assert [a["category_id"] for a in record["annotations"]] == [0]
    assert record["annotations"][0]["bbox"] == [2.0, 8.0, 8.0, 12.0]
    assert MetadataCatalog.get(resolved.DATASETS.TEST[0]).thing_classes == ["box"]
    assert len(DatasetCatalog.get(resolved.DATASETS.TEST[0])) == 2


def test_many_classes_leave_room_for_the_ignore_label(cfg: CfgNode, tmp_path: Path) -> None:
    data = trees.write_png_tree(tmp_path / "tree")
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"class {i}" for i in range(300)))
    resolved = resolve(cfg, data, "semantic", tmp_path, names_file=str(names), ignored=("none",))
    metadata = MetadataCatalog.get(resolved.DATASETS.TRAIN[0])
    assert resolved.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 300
    assert metadata.ignore_label == 65535
    assert metadata.label_ids[255] == 255
    record = DatasetCatalog.get(resolved.DATASETS.TRAIN[0])[0]
    sample = DatasetMapper.from_config(resolved)(record, np.random.default_rng(0))
    assert sample["instances"].gt_classes.tolist() == [3, 7, 20, 255]


def test_edited_classes_are_refused(cfg: CfgNode) -> None:
    cfg.DATASETS.OWN.CLASSES = ["sky"]
    with pytest.raises(ConfigError, match=r"DATASETS\.OWN\.CLASSES"):
        register_own_data(cfg)


def test_own_registration_may_map_ids_to_classes(cfg: CfgNode, tmp_path: Path) -> None:
    tree = trees.write_png_tree(tmp_path / "tree")
    metadata = {"stuff_classes": ["sky", "object"], "label_ids": {3: 0, 7: 1, 20: 1, 255: 255}}
    register_sem_seg("mine", metadata, tree / "train/images", tree / "train/masks")
    cfg.DATASETS.TRAIN = ["mine"]
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2
    sample = DatasetMapper.from_config(cfg)(DatasetCatalog.get("mine")[0], np.random.default_rng(0))
    assert sample["instances"].gt_classes.tolist() == [0, 1]
