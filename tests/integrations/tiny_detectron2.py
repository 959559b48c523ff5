"""What the tests of the detectron2 integration share; without detectron2 they are skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("detectron2", reason="detectron2 is not installed (it is installed from its repository)")

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.projects.deeplab import add_deeplab_config

import mask2former
from mask2former import add_maskformer2_config
from mask2former.config import add_maskformer2_video_config
from tests.parity import CONFIG_DIR, fill_model, fixture_config, load_fixture, register_metadata

SHAPES_CONFIG = CONFIG_DIR / "shapes/panoptic-segmentation/maskformer2_R18_quickstart.yaml"
TINY = """
    MODEL.DEVICE cpu MODEL.WEIGHTS '' MODEL.SEM_SEG_HEAD.CONVS_DIM 32 MODEL.SEM_SEG_HEAD.MASK_DIM 32
    MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS 1 MODEL.MASK_FORMER.HIDDEN_DIM 32 MODEL.MASK_FORMER.NHEADS 4
    MODEL.MASK_FORMER.DIM_FEEDFORWARD 32 MODEL.MASK_FORMER.DEC_LAYERS 2 MODEL.MASK_FORMER.NUM_OBJECT_QUERIES 8
    MODEL.MASK_FORMER.TRAIN_NUM_POINTS 64 SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 2 SOLVER.AMP.ENABLED False
    SOLVER.WARMUP_ITERS 0 DATALOADER.NUM_WORKERS 0 INPUT.MIN_SIZE_TRAIN (32,) INPUT.MIN_SIZE_TEST 32
    INPUT.IMAGE_SIZE 32 SOLVER.STEPS (1,)
""".split()


def detectron2_cfg(path: Path | str, *overrides: Any) -> CfgNode:
    """A config of detectron2, made as its projects make theirs."""
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    add_maskformer2_video_config(cfg)
    cfg.merge_from_file(str(path))
    cfg.merge_from_list(list(overrides))
    return cfg


def tiny_shapes_cfg(*overrides: Any) -> CfgNode:
    """The shapes recipe with a tiny model on the CPU."""
    options = ["" if option == "''" else option for option in TINY]
    return detectron2_cfg(SHAPES_CONFIG, *options, *overrides)


def fixture_models(name: str, *overrides: Any) -> tuple[nn.Module, nn.Module]:
    """The model of a fixture, ours and that of detectron2, with the same weights, in evaluation mode."""
    register_metadata()
    fixture = load_fixture(name)
    description = fixture.json("config_json")
    ours_cfg = fixture_config(fixture)
    ours_cfg.merge_from_list(list(overrides))
    theirs_cfg = detectron2_cfg(
        CONFIG_DIR / description["base_config"], *description["overrides"], "MODEL.DEVICE", "cpu", *overrides
    )
    ours, theirs = mask2former.build_model(ours_cfg).eval(), build_model(theirs_cfg).eval()
    fill_model(ours, fixture.seed)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def randomise(model: nn.Module) -> nn.Module:
    """Weights for which masks are neither empty nor full."""
    torch.manual_seed(11)
    for parameter in model.parameters():
        parameter.data.copy_(0.2 * torch.randn(parameter.shape))  # drawn alike in any layout
    return model
