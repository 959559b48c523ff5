"""Parameter groups as the published recipes have them, and clipping."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mask2former import build_model
from mask2former.config import CfgNode, get_cfg
from mask2former.engine.optimizer import (
    GroupRules,
    build_gradient_clipping,
    build_optimizer,
    build_parameter_groups,
)
from mask2former.errors import ConfigError
from mask2former.modeling.backbone import build_backbone
from tests.parity import CONFIG_DIR, REFERENCE_DIR

REFERENCE = json.loads((REFERENCE_DIR / "optimizer_and_schedule.json").read_text())
RECIPES = {
    "coco_panoptic_swin_tiny": "coco/panoptic-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml",
    "coco_panoptic_r50": "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
    "ade20k_semantic_r50": "ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml",
    "cityscapes_panoptic_r101": "cityscapes/panoptic-segmentation/maskformer2_R101_bs16_90k.yaml",
}


def recipe_config(recipe: str) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIG_DIR / RECIPES[recipe]))
    cfg.MODEL.DEVICE = "meta"
    return cfg


@pytest.mark.parametrize("recipe", RECIPES)
def test_build_optimizer_equals_reference_recipe(recipe: str) -> None:
    reference, cfg = REFERENCE[recipe], recipe_config(recipe)
    with torch.device("meta"):
        model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    assert type(optimizer).__name__ == reference["optimizer"]
    assert list(optimizer.defaults["betas"]) == reference["betas"]
    assert optimizer.defaults["eps"] == reference["eps"]
    actual = {
        name: [group["lr"], group["weight_decay"]] for group in optimizer.param_groups for name in group["param_names"]
    }
    assert actual == reference["params_lr_wd"]
    assert optimizer.param_groups[0]["param_names"][0] == reference["first_group_name"]
    assert len(optimizer.param_groups) == len({tuple(value) for value in actual.values()})
    clip = cfg.SOLVER.CLIP_GRADIENTS
    assert (clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE) == (
        True,
        "full_model",
        reference["grad_clip_full_model_norm"],
    )


class _Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.shared = nn.Linear(4, 4)
        self.shared_again = self.shared
        self.norm = nn.GroupNorm(2, 4)
        self.query = nn.Embedding(3, 4)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(3))


def test_build_parameter_groups_follows_all_rules_and_takes_each_parameter_once() -> None:
    rules = GroupRules(
        lr=1.0,
        weight_decay=0.5,
        backbone_multiplier=0.1,
        weight_decay_norm=0.25,
        weight_decay_embed=0.125,
        weight_decay_bias=0.0625,
        bias_lr_factor=2.0,
    )
    groups = build_parameter_groups(_Parts(), rules)
    actual = {name: (group["lr"], group["weight_decay"]) for group in groups for name, _ in group["params"]}
    assert actual == {
        "backbone.0.weight": (0.1, 0.5),
        "backbone.0.bias": (0.2, 0.0625),
        "backbone.1.weight": (0.1, 0.25),
        "backbone.1.bias": (0.2, 0.0625),
        "shared.weight": (1.0, 0.5),
        "shared.bias": (2.0, 0.0625),
        "norm.weight": (1.0, 0.25),
        "norm.bias": (2.0, 0.0625),
        "query.weight": (1.0, 0.125),
        "relative_position_bias_table": (1.0, 0.0),
    }
    assert len(groups) == len(set(actual.values()))


def layer_decay_factors(backbone: str, **options: Any) -> dict[str, float]:
    cfg = recipe_config("coco_panoptic_swin_tiny")
    cfg.MODEL.BACKBONE.NAME = backbone
    cfg.merge_from_list([item for pair in options.items() for item in pair])
    with torch.device("meta"):
        model = nn.ModuleDict({"backbone": build_backbone(cfg), "head": nn.Linear(2, 2)})
    rates = []
    for decay in (1.0, 0.5):
        cfg.SOLVER.LAYER_DECAY = decay
        groups = build_parameter_groups(model, GroupRules.from_config(cfg))
        rates.append({name: group["lr"] for group in groups for name, _ in group["params"]})
    return {name: rates[1][name] / rate for name, rate in rates[0].items()}


def test_layer_decay_falls_towards_the_input_of_swin() -> None:
    factors = layer_decay_factors("D2SwinTransformer")
    assert factors["head.weight"] == 1.0
    assert factors["backbone.norm3.weight"] == factors["backbone.layers.3.blocks.1.mlp.fc1.weight"] == 0.5
    assert factors["backbone.layers.3.blocks.0.mlp.fc1.weight"] == 0.25
    assert factors["backbone.layers.0.downsample.reduction.weight"] == 0.5**11
    assert factors["backbone.patch_embed.proj.weight"] == 0.5**13


def test_layer_decay_falls_towards_the_input_of_resnet_and_timm() -> None:
    factors = layer_decay_factors("build_resnet_backbone")
    assert factors["backbone.res5.2.conv1.weight"] == 0.5
    assert factors["backbone.stem.conv1.weight"] == 0.5**5
    factors = layer_decay_factors("build_timm_backbone", **{"MODEL.TIMM.NAME": "vit_tiny_patch16_224"})
    assert factors["backbone.pyramid.scales.0.0.weight"] == 1.0
    assert factors["backbone.network.blocks.11.mlp.fc1.weight"] == 0.5
    assert factors["backbone.network.pos_embed"] == 0.5**13


def test_position_embeddings_of_timm_are_not_decayed() -> None:
    cfg = recipe_config("coco_panoptic_swin_tiny")
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.TIMM.NAME = "build_timm_backbone", "vit_tiny_patch16_224"
    with torch.device("meta"):
        groups = build_parameter_groups(build_backbone(cfg), GroupRules.from_config(cfg))
    decays = {name: group["weight_decay"] for group in groups for name, _ in group["params"]}
    assert decays["network.pos_embed"] == decays["network.cls_token"] == 0.0
    assert decays["network.blocks.0.mlp.fc1.weight"] == cfg.SOLVER.WEIGHT_DECAY


@pytest.mark.parametrize("decay", [0.0, 1.5])
def test_layer_decay_refuses_what_is_no_decay(decay: float) -> None:
    rules = GroupRules(lr=1.0, weight_decay=0.0, layer_decay=decay)
    with pytest.raises(ConfigError, match=r"SOLVER\.LAYER_DECAY: expected a factor"):
        build_parameter_groups(_Parts(), rules)


@pytest.mark.parametrize("name", ["ADAMW", "adamw", "SGD"])
def test_build_optimizer_is_fused_and_moves_weights(name: str) -> None:
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.OPTIMIZER", name, "SOLVER.BASE_LR", 0.1])
    model = _Parts()
    optimizer = build_optimizer(cfg, model)
    before = model.shared.weight.detach().clone()
    model.shared(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert optimizer.defaults["fused"]
    assert not torch.equal(model.shared.weight, before)


def test_build_optimizer_refuses_unknown_name_and_frozen_model() -> None:
    cfg = get_cfg()
    with pytest.raises(ConfigError, match="everything is frozen"):
        build_optimizer(cfg, nn.Linear(2, 2).requires_grad_(False))
    cfg.SOLVER.OPTIMIZER = "LION"
    with pytest.raises(ConfigError, match=r"SOLVER\.OPTIMIZER.*LION"):
        build_optimizer(cfg, nn.Linear(2, 2))


def clip(gradients: list[list[float]], **options: Any) -> tuple[float, list[list[float]]]:
    cfg = get_cfg()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    for key, value in options.items():
        cfg.SOLVER.CLIP_GRADIENTS[key] = value
    parameters = [nn.Parameter(torch.zeros(len(values))) for values in gradients]
    for parameter, values in zip(parameters, gradients):
        parameter.grad = torch.tensor(values)
    unused = nn.Parameter(torch.zeros(2))
    norm = build_gradient_clipping(cfg)([*parameters, unused])
    return norm.item(), [parameter.grad.tolist() for parameter in parameters if parameter.grad is not None]


def test_gradient_clipping_full_model_limits_norm_of_all() -> None:
    norm, clipped = clip([[3.0, 0.0], [0.0, 4.0]], CLIP_TYPE="full_model", CLIP_VALUE=0.5)
    assert norm == pytest.approx(5.0)
    assert clipped[0] == pytest.approx([0.3, 0.0], rel=1e-5)
    assert clipped[1] == pytest.approx([0.0, 0.4], rel=1e-5)


def test_gradient_clipping_norm_limits_each_parameter() -> None:
    norm, clipped = clip([[3.0, 0.0], [0.0, 0.2]], CLIP_TYPE="norm", CLIP_VALUE=1.0)
    assert norm == pytest.approx(3.0066592, rel=1e-5)
    assert clipped[0] == pytest.approx([1.0, 0.0], rel=1e-5)
    assert clipped[1] == pytest.approx([0.0, 0.2])


def test_gradient_clipping_value_limits_each_element() -> None:
    assert clip([[3.0, -0.5], [-4.0]], CLIP_TYPE="value", CLIP_VALUE=1.0)[1] == [[1.0, -0.5], [-1.0]]


def test_gradient_clipping_leaves_small_and_disabled_gradients_alone() -> None:
    assert clip([[0.3, 0.4]], CLIP_TYPE="full_model", CLIP_VALUE=1.0)[1][0] == pytest.approx([0.3, 0.4])
    norm, kept = clip([[30.0, 40.0]], ENABLED=False)
    assert norm == pytest.approx(50.0)
    assert kept == [[30.0, 40.0]]


def test_gradient_clipping_refuses_unknown_type() -> None:
    with pytest.raises(ConfigError, match=r"CLIP_TYPE.*whole"):
        clip([[1.0]], CLIP_TYPE="whole")


ONEFORMER = json.loads((REFERENCE_DIR / "oneformer" / "optimizer.json").read_text())["recipes"]


@pytest.mark.parametrize("recipe", ONEFORMER, ids=lambda recipe: Path(recipe).stem)
def test_groups_of_oneformer_equal_the_published_ones(recipe: str) -> None:
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIG_DIR / "oneformer" / recipe))
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        optimizer = build_optimizer(cfg, build_model(cfg))
    groups = {
        name: [group["lr"], group["weight_decay"]] for group in optimizer.param_groups for name in group["param_names"]
    }
    assert groups == {name: pytest.approx(values) for name, values in ONEFORMER[recipe].items()}


def test_clipping_by_parity_bounds_nothing_and_replaces_what_is_not_finite() -> None:
    cfg = get_cfg()
    cfg.merge_from_dict({"SOLVER.CLIP_GRADIENTS": {"ENABLED": True, "CLIP_TYPE": "full_model", "CLIP_VALUE": 0.01}})
    weight = torch.zeros(4, requires_grad=True)
    for parity, expected in ((True, [3.0, 0.0, 1e5, -1e5]), (False, None)):
        cfg.SOLVER.CLIP_GRADIENTS.PARITY = parity
        weight.grad = torch.tensor([3.0, torch.nan, torch.inf, -torch.inf] if parity else [3.0, 4.0, 0.0, 0.0])
        norm = build_gradient_clipping(cfg)([weight])
        if expected is None:
            assert float(norm) == 5.0
            assert float(weight.grad.norm()) == pytest.approx(0.01, rel=1e-4)
        else:
            assert weight.grad.tolist() == expected
            assert torch.isfinite(norm)
