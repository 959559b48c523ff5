"""ConvNeXt: equal to timm's arithmetic, its own norms and options."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mask2former.config import get_cfg
from mask2former.engine.optimizer import GroupRules, build_parameter_groups
from mask2former.errors import ConfigError
from mask2former.modeling.backbone import D2ConvNeXt, build_backbone
from mask2former.modeling.backbone.convnext import ConvNeXtBlock

TINY: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "drop_path_rate": 0.5}


def test_convnext_equals_that_of_timm() -> None:
    timm = pytest.importorskip("timm")
    ours = D2ConvNeXt(**{**TINY, "drop_path_rate": 0.0}).eval()
    other = timm.models.convnext.ConvNeXt(depths=TINY["depths"], dims=TINY["dims"], ls_init_value=1.0).eval()
    names = [n for n in other.state_dict() if n.startswith(("stem", "stages"))]
    parameters = [p for n, p in ours.named_parameters() if not n.startswith("norm")]
    by_stage = [*ours.downsample_layers[0].parameters()]
    for index, stage in enumerate(ours.stages):
        by_stage += [*(ours.downsample_layers[index].parameters() if index else ()), *stage.parameters()]
    assert len(by_stage) == len(parameters) == len(names)
    with torch.no_grad():
        for name, parameter in zip(names, by_stage, strict=True):
            parameter.copy_(torch.randn_like(parameter) * 0.2)
            other.state_dict()[name].copy_(parameter)
        image = torch.randn(1, 3, 64, 96)
        x = other.stem(image)
        for index, (name, feature) in enumerate(ours(image).items()):
            x = other.stages[index](x)
            torch.testing.assert_close(
                feature, ours.get_submodule(f"norm{index}")(x), msg=lambda t, n=name: f"{n}: {t}"
            )


def test_norms_of_convnext_are_decayed() -> None:
    groups = build_parameter_groups(
        D2ConvNeXt(**TINY), GroupRules(lr=1e-4, weight_decay=0.05, weight_decay_norm=0.0, weight_decay_embed=0.0)
    )
    assert [group["weight_decay"] for group in groups] == [0.05]


def test_convnext_reads_every_config_key() -> None:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "D2ConvNeXt"
    values = {"DEPTHS": [1, 2], "DIMS": [8, 12], "DROP_PATH_RATE": 0.3, "LSIT": 0.5, "OUT_FEATURES": ["res3"]}
    for key, value in values.items():
        cfg.MODEL.CONVNEXT[key] = value
    backbone = build_backbone(cfg)
    assert {name: (spec.channels, spec.stride) for name, spec in backbone.output_shape().items()} == {"res3": (12, 8)}
    assert [len(stage) for stage in backbone.stages] == [1, 2]
    block = backbone.stages[1][1]
    assert block.drop_path.p == pytest.approx(0.3)
    assert torch.equal(block.gamma, torch.full((12,), 0.5))
    cfg.MODEL.CONVNEXT.LSIT = 0.0
    assert build_backbone(cfg).stages[0][0].gamma is None


def test_convnext_drop_path_grows_linearly_with_depth() -> None:
    rates = [module.drop_path.p for module in D2ConvNeXt(**TINY).modules() if isinstance(module, ConvNeXtBlock)]
    assert rates == pytest.approx([0.0, 0.125, 0.25, 0.375, 0.5])


def test_convnext_layers_follow_the_image_through_the_network() -> None:
    backbone = D2ConvNeXt(**TINY)
    layers = backbone.parameter_layers()
    assert set(layers) == {name for name, _ in backbone.named_parameters()}
    chosen = ("downsample_layers.0.0.weight", "stages.0.0.gamma", "norm0.bias", "downsample_layers.2.1.bias")
    assert [layers[name] for name in (*chosen, "stages.2.1.gamma", "norm2.weight", "norm3.bias")] == [
        0,
        1,
        1,
        3,
        4,
        4,
        5,
    ]


def test_convnext_refuses_dims_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match=r"MODEL\.CONVNEXT\.DIMS: .*the 4 stages of DEPTHS, found \[8, 16\]"):
        D2ConvNeXt(**{**TINY, "dims": [8, 16]})
