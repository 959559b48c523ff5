"""What each preparation makes trains one iteration of a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mask2former.commands.prepare import run_preparation
from mask2former.config import CfgNode, get_cfg
from mask2former.data import build_train_loader
from mask2former.modeling import build_model
from tests.data_pipeline import prepared_trees

CONFIG = Path(__file__).parents[2] / "configs/shapes/panoptic-segmentation/maskformer2_R18_quickstart.yaml"
TINY = """
    MODEL.DEVICE cpu MODEL.SEM_SEG_HEAD.CONVS_DIM 32 MODEL.SEM_SEG_HEAD.MASK_DIM 32
    MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS 1 MODEL.MASK_FORMER.HIDDEN_DIM 32 MODEL.MASK_FORMER.NHEADS 2
    MODEL.MASK_FORMER.DIM_FEEDFORWARD 16 MODEL.MASK_FORMER.DEC_LAYERS 2 MODEL.MASK_FORMER.NUM_OBJECT_QUERIES 4
    MODEL.MASK_FORMER.TRAIN_NUM_POINTS 16 SOLVER.IMS_PER_BATCH 2 DATALOADER.NUM_WORKERS 0 MODEL.WEIGHTS '' SEED 1
    INPUT.MIN_SIZE_TRAIN (64,) INPUT.SIZE_DIVISIBILITY -1 INPUT.CROP.ENABLED False
    MODEL.SEM_SEG_HEAD.NUM_CLASSES 847
""".split()  # as many classes as the largest data set


def _config() -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIG))
    cfg.merge_from_list([value.strip("'") for value in TINY])
    return cfg


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build_model(_config()).train()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    prepared_trees.coco_tree(root, ("train2017",))
    prepared_trees.coco_stuff_10k_tree(root)
    prepared_trees.ade20k_tree(root, ("training",))
    prepared_trees.ade20k_full_tree(root)
    prepared_trees.cityscapes_tree(root, ("train",), has_polygons=True)
    prepared_trees.mapillary_tree(root, nested=True)
    for name in (
        *("coco_semantic", "coco_stuff", "coco_stuff_10k", "cityscapes", "mapillary_vistas"),
        *("ade20k_sem_seg", "ade20k_ins_seg", "ade20k_pan_seg", "ade20k_full_sem_seg"),
    ):
        run_preparation(name, root)
    return root


@pytest.mark.parametrize(
    ("name", "mapper"),
    [
        ("coco_2017_train", "mask_former_instance"),
        ("coco_2017_train_panoptic", "coco_panoptic_lsj"),
        ("coco_2017_train_panoptic_with_sem_seg", "mask_former_semantic"),
        ("coco_2017_train_panoptic_stuffonly", "mask_former_semantic"),
        ("coco_2017_train_stuff_10k_sem_seg", "mask_former_semantic"),
        ("ade20k_sem_seg_train", "mask_former_semantic"),
        ("ade20k_instance_train", "mask_former_instance"),
        ("ade20k_panoptic_train", "mask_former_panoptic"),
        ("ade20k_full_sem_seg_train", "mask_former_semantic"),
        ("cityscapes_fine_sem_seg_train", "mask_former_semantic"),
        ("cityscapes_fine_instance_seg_train", "mask_former_instance"),
        ("cityscapes_fine_panoptic_train", "mask_former_panoptic"),
        ("mapillary_vistas_sem_seg_train", "mask_former_semantic"),
        ("mapillary_vistas_panoptic_train", "mask_former_panoptic"),
    ],
)
def test_prepared_data_trains_one_iteration(
    name: str, mapper: str, model: nn.Module, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "cityscapes_fine_instance_seg_train":
        pytest.importorskip("shapely", reason="polygons of Cityscapes need the extra [cityscapes]")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(prepared))
    cfg = _config()
    cfg.DATASETS.TRAIN = [name]
    cfg.INPUT.DATASET_MAPPER_NAME = mapper
    cfg.INPUT.IMAGE_SIZE = 64
    torch.manual_seed(0)
    model.zero_grad()
    batch = next(iter(build_train_loader(cfg)))
    losses = model(batch)
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
    assert any(len(sample["instances"]) > 0 for sample in batch)
