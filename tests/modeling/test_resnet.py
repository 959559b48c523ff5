"""ResNet: equal to torchvision's, and its options."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from mask2former.config import CfgNode, get_cfg
from mask2former.errors import ConfigError
from mask2former.modeling import accelerate, prepare_for_inference
from mask2former.modeling.backbone import ResNet, build_backbone
from mask2former.modeling.fast.convolution import FastConv2d
from mask2former.modeling.layers import FrozenBatchNorm2d, SyncBatchNorm
from tests.parity import assert_close_to_peak, fill_model, fixture_config, load_fixture

TINY: dict[str, Any] = {"stem_out_channels": 8, "width_per_group": 4, "res2_out_channels": 16}


def tiny_config(**options: Any) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.RESNETS.merge_from_list(
        [part for key, value in {
            "STEM_OUT_CHANNELS": 8,
            "WIDTH_PER_GROUP": 4,
            "RES2_OUT_CHANNELS": 16,
            "OUT_FEATURES": ["res2", "res3", "res4", "res5"],
            **options,
        }.items() for part in (key, value)]
    )  # fmt: skip
    return cfg


def torchvision_name(name: str) -> str:
    """The name torchvision gives to a state-dict entry of ours."""
    name = re.sub(r"^stem\.", "", name)
    name = re.sub(r"^res(\d)", lambda match: f"layer{int(match[1]) - 1}", name)
    name = re.sub(r"conv(\d)\.norm", r"bn\1", name)
    return name.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")


def strides(backbone: ResNet) -> list[int | None]:
    return [spec.stride for spec in backbone.output_shape().values()]


@pytest.mark.parametrize(("depth", "options"), [(18, {}), (50, {}), (50, {"groups": 4, "width_per_group": 16})])
def test_resnet_equals_torchvision(depth: int, options: dict[str, int]) -> None:
    theirs = getattr(torchvision.models, f"resnet{depth}")(**options).eval()
    fill_model(theirs, 3)
    ours = ResNet(
        depth=depth,
        norm="BN",
        res2_out_channels=64 if depth == 18 else 256,
        num_groups=options.get("groups", 1),
        width_per_group=options.get("width_per_group", 64),
    ).eval()
    weights = theirs.state_dict()
    ours.load_state_dict({name: weights[torchvision_name(name)] for name in ours.state_dict()})
    extractor = create_feature_extractor(theirs, {f"layer{index}": f"res{index + 1}" for index in range(1, 5)})
    image = torch.randn(1, 3, 61, 40)
    with torch.no_grad():
        expected, actual = extractor(image), ours(image)
    for name, feature in actual.items():
        assert_close_to_peak(feature, expected[name], tolerance=1e-5)


@pytest.mark.parametrize("has_folded_norms", [False, True])
def test_resnet_matches_reference(has_folded_norms: bool) -> None:
    fixture = load_fixture("tiny_resnet_panoptic")
    model = nn.Module()
    model.backbone = build_backbone(fixture_config(fixture)).eval()
    fill_model(model, fixture.seed)
    if has_folded_norms:
        prepare_for_inference(model.eval())
        assert not any(isinstance(module, FrozenBatchNorm2d) for module in model.modules())
    with torch.no_grad():
        features = model.backbone(fixture.tensor("padded_input"))
    for name, feature in features.items():
        assert_close_to_peak(feature, fixture.tensor(f"backbone/{name}"))


@pytest.mark.parametrize(("depth", "num_blocks"), [(34, 16), (101, 33), (152, 50)])
def test_resnet_depth_counts_its_blocks(depth: int, num_blocks: int) -> None:
    with torch.device("meta"):
        backbone = ResNet(depth=depth, res2_out_channels=64 if depth == 34 else 256)
    assert sum(len(backbone.get_submodule(name)) for name in backbone.stage_names) == num_blocks


def test_resnet_deeplab_stem_has_three_convolutions() -> None:
    cfg = tiny_config(STEM_TYPE="deeplab")
    cfg.MODEL.BACKBONE.NAME = "build_resnet_deeplab_backbone"
    shapes = {name: list(p.shape) for name, p in build_backbone(cfg).stem.named_parameters()}
    assert shapes == {
        "conv1.weight": [4, 3, 3, 3],
        "conv1_2.weight": [4, 4, 3, 3],
        "conv1_3.weight": [8, 4, 3, 3],
    }


def test_resnet_builder_ignores_stem_type() -> None:
    cfg = tiny_config(STEM_TYPE="deeplab")
    assert list(dict(build_backbone(cfg).stem.named_parameters())) == ["conv1.weight"]
    cfg.MODEL.BACKBONE.NAME = "build_resnet_deeplab_backbone"
    cfg.MODEL.RESNETS.STEM_TYPE = "basic"
    assert list(dict(build_backbone(cfg).stem.named_parameters())) == ["conv1.weight"]


@pytest.mark.parametrize(
    ("res4", "res5", "expected_strides", "expected_dilations"),
    [
        (1, 1, [4, 8, 16, 32], [1, 2, 4]),
        (1, 2, [4, 8, 16, 16], [2, 4, 8]),
        (2, 4, [4, 8, 8, 8], [4, 8, 16]),
    ],
)
def test_resnet_dilation_keeps_resolution(
    res4: int, res5: int, expected_strides: list[int], expected_dilations: list[int]
) -> None:
    cfg = tiny_config(RES4_DILATION=res4, RES5_DILATION=res5, RES5_MULTI_GRID=[1, 2, 4])
    cfg.MODEL.BACKBONE.NAME = "build_resnet_deeplab_backbone"
    backbone = build_backbone(cfg).eval()
    assert strides(backbone) == expected_strides
    assert [block.conv2.dilation[0] for block in backbone.res5] == expected_dilations
    assert {block.conv2.dilation[0] for block in backbone.res4} == {res4}
    features = backbone(torch.randn(1, 3, 64, 64))
    assert [64 // feature.shape[-1] for feature in features.values()] == expected_strides


def test_resnet_plain_builder_reads_res5_dilation_alone() -> None:
    backbone = build_backbone(tiny_config(RES5_DILATION=2, RES4_DILATION=2, RES5_MULTI_GRID=[1, 2, 4]))
    assert strides(backbone) == [4, 8, 16, 16]
    assert [block.conv2.dilation[0] for block in backbone.res5] == [2, 2, 2]


@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_resnet_stride_lies_in_the_chosen_convolution(stride_in_1x1: bool) -> None:
    block = build_backbone(tiny_config(STRIDE_IN_1X1=stride_in_1x1)).res3[0]
    assert (block.conv1.stride[0], block.conv2.stride[0]) == ((2, 1) if stride_in_1x1 else (1, 2))


@pytest.mark.parametrize("freeze_at", range(6))
@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_resnet_freezes_the_first_stages(freeze_at: int, norm: str) -> None:
    backbone = ResNet(**TINY, norm=norm, freeze_at=freeze_at)
    parts = ["stem", "res2", "res3", "res4", "res5"]
    for index, name in enumerate(parts):
        part = backbone.get_submodule(name)
        is_frozen = index < freeze_at
        assert {p.requires_grad for p in part.parameters()} == {not is_frozen}
        norms = {type(m) for m in part.modules() if isinstance(m, FrozenBatchNorm2d | nn.modules.batchnorm._BatchNorm)}
        trainable = {"BN": nn.BatchNorm2d, "SyncBN": SyncBatchNorm}[norm]
        assert norms == {FrozenBatchNorm2d if is_frozen else trainable}


def test_resnet_frozen_stages_stay_put_in_training() -> None:
    backbone = ResNet(**TINY, norm="BN", freeze_at=2).train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    sum(feature.square().mean() for feature in backbone(torch.randn(2, 3, 32, 32)).values()).backward()
    optimizer.step()
    changed = {name.split(".")[0] for name, tensor in backbone.state_dict().items() if not tensor.equal(before[name])}
    assert changed == {"res3", "res4", "res5"}


def test_resnet_can_return_the_stem_and_builds_no_more_than_needed() -> None:
    backbone = ResNet(**TINY, out_features=("stem", "res2"))
    assert backbone.stage_names == ("res2",)
    features = backbone(torch.randn(1, 3, 32, 32))
    assert {name: tuple(f.shape) for name, f in features.items()} == {"stem": (1, 8, 8, 8), "res2": (1, 16, 8, 8)}


def test_resnet_is_initialised_for_relu() -> None:
    weight = ResNet(depth=18, res2_out_channels=64).res5[1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"DEPTH": 42}, "DEPTH"),
        ({"DEPTH": 18}, "RES2_OUT_CHANNELS"),
        ({"DEPTH": 18, "RES2_OUT_CHANNELS": 64, "NUM_GROUPS": 2}, "NUM_GROUPS"),
        ({"NORM": "BatchNorm"}, "NORM"),
        ({"STEM_TYPE": "patchify"}, "STEM_TYPE"),
        ({"RES4_DILATION": 3}, "RES4_DILATION"),
        ({"RES5_DILATION": 3}, "RES5_DILATION"),
        ({"RES4_DILATION": 2, "RES5_DILATION": 2}, "RES5_DILATION"),
        ({"RES5_MULTI_GRID": [1, 2]}, "RES5_MULTI_GRID"),
        ({"DEFORM_ON_PER_STAGE": [False, False, False, True]}, "DEFORM_ON_PER_STAGE"),
    ],
)
def test_resnet_refuses_options_by_key(options: dict[str, Any], key: str) -> None:
    cfg = tiny_config(**options)
    cfg.MODEL.BACKBONE.NAME = "build_resnet_deeplab_backbone"
    with pytest.raises(ConfigError, match=rf"MODEL\.RESNETS\.{key}: .*found"):
        build_backbone(cfg)


@pytest.mark.parametrize("stem_channels", [16, 64])
def test_inference_writes_over_no_feature_that_was_handed_out(stem_channels: int) -> None:
    model = ResNet(
        depth=50,
        stem_out_channels=stem_channels,
        res2_out_channels=64,  # the width of the wider stem, on which the first block has no convolution
        width_per_group=16,
        out_features=("stem", "res2", "res3", "res4", "res5"),
    ).eval()
    fill_model(model, 5)
    image = torch.randn(2, 3, 70, 90).contiguous(memory_format=torch.channels_last)
    expected = model(image)  # with gradients, which need all maps
    accelerate(model)
    with torch.no_grad():
        found = model(image)
    for name, feature in found.items():
        assert_close_to_peak(feature, expected[name].detach(), tolerance=1e-5)


def wide_resnet() -> ResNet:
    """A network whose maps are wide enough for inference to write over them."""
    model = ResNet(stem_out_channels=16, res2_out_channels=64, width_per_group=16, norm="FrozenBN").eval()
    fill_model(model, 5)
    return accelerate(model)


class SeenMaps:
    """Keeps what forward hooks are given, as users do who look into a network: without copies."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.maps: dict[str, Tensor] = {}
        for name, module in modules.items():
            module.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, inputs, output: self.maps.__setitem__(name, output)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_hooks_see_in_inference_what_they_see_with_gradients(
    context: Callable[[], AbstractContextManager[None]],
) -> None:
    model, image = wide_resnet(), torch.randn(1, 3, 64, 96).to(memory_format=torch.channels_last)
    blocks = {f"block{index}": block for index, block in enumerate(model.res3)}
    seen = SeenMaps({**blocks, "conv2": model.res3[1].conv2, "shortcut": model.res4[0].shortcut})
    model(image)
    expected = {name: maps.detach().clone() for name, maps in seen.maps.items()}
    assert len(expected) == 6
    seen.maps.clear()
    with context():
        model(image)
    assert seen.maps.keys() == expected.keys()
    for name, maps in expected.items():
        assert_close_to_peak(seen.maps[name], maps, tolerance=1e-5)


@torch.no_grad()
def test_hooks_of_a_last_convolution_are_called_in_inference() -> None:
    model, image = wide_resnet(), torch.randn(1, 3, 64, 96).to(memory_format=torch.channels_last)
    calls: list[str] = []
    convolution = model.res3[1].conv3
    handles = [
        convolution.register_forward_hook(lambda *_: calls.append("hook")),
        convolution.register_forward_pre_hook(lambda *_: calls.append("pre-hook")),
    ]
    model(image)
    assert calls == ["pre-hook", "hook"]
    for handle in handles:
        handle.remove()
    with_global: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: with_global.append(module))
    try:
        model(image)
    finally:
        handle.remove()
    assert sum(module is convolution for module in with_global) == 1
    convolution.forward = lambda x: torch.zeros(1, 128, 8, 12)  # as tools do that move weights from disk
    assert model(image)["res3"].isfinite().all()
    assert not torch.equal(model(image)["res3"], wide_resnet()(image)["res3"])


@torch.no_grad()
def test_inference_without_hooks_writes_over_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = wide_resnet(), torch.randn(1, 3, 64, 96).to(memory_format=torch.channels_last)
    over: list[int] = []
    add_over = FastConv2d.add_over
    monkeypatch.setattr(
        FastConv2d, "add_over", lambda self, total, x: over.append(total.data_ptr()) or add_over(self, total, x)
    )
    model(image)
    assert len(over) == 16
    assert len(set(over[3:7])) == 1  # the four sums of res3
    model.res3.register_forward_hook(lambda *_: None)
    over.clear()
    model(image)
    assert len(over) == 12


def test_stage_takes_other_modules_for_blocks_and_cuts() -> None:
    stage, x = wide_resnet().res3, torch.randn(1, 64, 8, 12)
    stage[1] = nn.Identity()
    expected = stage(x)
    with torch.no_grad():
        torch.testing.assert_close(stage(x), expected)
        part, rest = stage[:2], stage[2:]
        middle = part(x)
        before = middle.clone()
        torch.testing.assert_close(rest(middle), expected)
        assert torch.equal(middle, before)
