"""What every backbone promises, tried on all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mask2former.config import get_cfg
from mask2former.errors import ConfigError
from mask2former.modeling.backbone import (
    Backbone,
    D2ConvNeXt,
    D2DiNAT,
    D2SwinTransformer,
    ResNet,
    build_backbone,
)
from mask2former.structures import ShapeSpec
from tests.parity import (
    CONFIG_DIR,
    REFERENCE_DIR,
    assert_close_to_peak,
    fill_model,
    fixture_config,
    load_fixture,
    load_state_dict_reference,
)

TINY_RESNET: dict[str, Any] = {"stem_out_channels": 8, "width_per_group": 4, "res2_out_channels": 16}
TINY_SWIN: dict[str, Any] = {
    "embed_dim": 8,
    "depths": (2, 2, 1, 1),
    "num_heads": (1, 2, 4, 8),
    "window_size": 4,
    "drop_path_rate": 0.0,
}
TINY_CONVNEXT: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "drop_path_rate": 0.0}
TINY_DINAT: dict[str, Any] = {
    "embed_dim": 8,
    "depths": (2, 1, 1, 1),
    "num_heads": (1, 2, 2, 4),
    "kernel_size": 3,
    "dilations": ((1, 4), (2,), (1,), (1,)),
    "drop_path_rate": 0.0,
}
BACKBONES: dict[str, Callable[..., Backbone]] = {
    "resnet18": lambda **options: ResNet(depth=18, res2_out_channels=64, **options),
    "resnet50": lambda **options: ResNet(**TINY_RESNET, **options),
    "resnet50_deeplab": lambda **options: ResNet(
        **TINY_RESNET, stem_type="deeplab", dilations=(1, 1, 2, 4), res5_multi_grid=(1, 2, 4), **options
    ),
    "resnext50": lambda **options: ResNet(**TINY_RESNET, num_groups=2, **options),
    "resnet50_group_norm": lambda **options: ResNet(
        stem_out_channels=64, width_per_group=64, res2_out_channels=64, norm="GN", **options
    ),
    "swin": lambda **options: D2SwinTransformer(**TINY_SWIN, **options),
    "swin_absolute_position": lambda **options: D2SwinTransformer(
        **TINY_SWIN, ape=True, patch_norm=False, qkv_bias=False, pretrain_img_size=32, **options
    ),
    "convnext": lambda **options: D2ConvNeXt(**TINY_CONVNEXT, **options),
    "dinat": lambda **options: D2DiNAT(**TINY_DINAT, **options),
}
FULL_SIZE_RECIPES = {
    "ade20k_semantic_r101_bs16_90k": "ade20k/semantic-segmentation/maskformer2_R101_bs16_90k.yaml",
    "cityscapes_panoptic_r101": "cityscapes/panoptic-segmentation/maskformer2_R101_bs16_90k.yaml",
    "coco_panoptic_r50": "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
    "coco_panoptic_r101": "coco/panoptic-segmentation/maskformer2_R101_bs16_50ep.yaml",
    "coco_panoptic_swin_tiny": "coco/panoptic-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml",
    "coco_panoptic_swin_small": "coco/panoptic-segmentation/swin/maskformer2_swin_small_bs16_50ep.yaml",
    "coco_panoptic_swin_base": "coco/panoptic-segmentation/swin/maskformer2_swin_base_384_bs16_50ep.yaml",
    "coco_panoptic_swin_large": "coco/panoptic-segmentation/swin/maskformer2_swin_large_IN21k_384_bs16_100ep.yaml",
}

all_backbones = pytest.mark.parametrize("build", BACKBONES.values(), ids=BACKBONES)


@all_backbones
@pytest.mark.parametrize("size", [(64, 96), (61, 93), (33, 7), (1, 1)])
def test_backbone_feature_shapes_are_as_promised(build: Callable[..., Backbone], size: tuple[int, int]) -> None:
    backbone = build().eval()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, *size))
    promised = backbone.output_shape()
    assert list(features) == list(promised) == ["res2", "res3", "res4", "res5"]
    for name, feature in features.items():
        assert feature.shape == (1, promised[name].channels, *(-(-side // promised[name].stride) for side in size))
        assert feature.isfinite().all()


@all_backbones
def test_backbone_batch_equals_single_images(build: Callable[..., Backbone]) -> None:
    backbone = build().eval()
    images = torch.randn(3, 3, 45, 70)
    with torch.no_grad():
        batch = backbone(images)
        singles = [backbone(image[None]) for image in images]
    for name, feature in batch.items():
        assert_close_to_peak(feature, torch.cat([single[name] for single in singles]), tolerance=1e-5)


@all_backbones
def test_backbone_gradients_reach_every_parameter(build: Callable[..., Backbone]) -> None:
    backbone = build().train()
    features = backbone(torch.randn(2, 3, 64, 64))
    sum((feature * torch.randn_like(feature)).sum() for feature in features.values()).backward()
    without = [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


@all_backbones
def test_backbone_channels_last_changes_no_feature(build: Callable[..., Backbone]) -> None:
    backbone = build().eval()
    image = torch.randn(1, 3, 37, 50)
    with torch.no_grad():
        expected = backbone(image)
        actual = backbone.to(memory_format=torch.channels_last)(image.to(memory_format=torch.channels_last))
    for name, feature in actual.items():
        assert_close_to_peak(feature, expected[name], tolerance=1e-5)


@all_backbones
def test_backbone_computes_only_wanted_features(build: Callable[..., Backbone]) -> None:
    torch.manual_seed(1)
    chosen = build(out_features=("res3",)).eval()
    complete = build().eval()
    complete.load_state_dict(chosen.state_dict(), strict=False)
    image = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        features = chosen(image)
        assert list(features) == list(chosen.output_shape()) == ["res3"]
        assert_close_to_peak(features["res3"], complete(image)["res3"], tolerance=1e-6)


@all_backbones
def test_backbone_refuses_unknown_features(build: Callable[..., Backbone]) -> None:
    with pytest.raises(ConfigError, match="res9"):
        build(out_features=("res2", "res9"))
    with pytest.raises(ConfigError, match="out_features"):
        build(out_features=())


@all_backbones
def test_backbone_runs_in_bfloat16_autocast(build: Callable[..., Backbone]) -> None:
    backbone = build().eval()
    image = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        expected = backbone(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = backbone(image)
    for name, feature in actual.items():
        assert_close_to_peak(feature.float(), expected[name], tolerance=0.1)


@pytest.mark.parametrize("name", ["resnet18", "swin", "convnext", "dinat"])
def test_backbone_traces_without_graph_breaks(name: str) -> None:
    backbone = BACKBONES[name]().eval()
    image = torch.randn(1, 3, 40, 56)
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)
    with torch.no_grad():
        expected, actual = backbone(image), compiled(image)
    for name, feature in actual.items():
        assert_close_to_peak(feature, expected[name], tolerance=1e-5)


@pytest.mark.parametrize("name", ["tiny_resnet_panoptic", "tiny_swin_panoptic"])
def test_backbone_state_dict_is_that_of_the_fixture(name: str) -> None:
    fixture = load_fixture(name)
    state = build_backbone(fixture_config(fixture)).state_dict()
    expected = {key: shape for key, shape in fixture.state_dict_shapes().items() if key.startswith("backbone.")}
    assert [(f"backbone.{key}", tuple(tensor.shape)) for key, tensor in state.items()] == list(expected.items())


@pytest.mark.parametrize("reference_name", FULL_SIZE_RECIPES)
def test_backbone_state_dict_is_that_of_the_full_size_model(reference_name: str) -> None:
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIG_DIR / FULL_SIZE_RECIPES[reference_name]))
    with torch.device("meta"):
        state = build_backbone(cfg).state_dict()
    actual = [(f"backbone.{k}", list(t.shape), str(t.dtype).removeprefix("torch.")) for k, t in state.items()]
    reference = load_state_dict_reference(reference_name)["state_dict"]
    assert actual == [(key, *entry) for key, entry in reference.items() if key.startswith("backbone.")]


# Backbones of OneFormer, by the overrides of their fixtures alone.
ONEFORMER = {"tiny_oneformer_convnext_seed1": "D2ConvNeXt", "tiny_oneformer_dinat_seed1": "D2DiNAT"}
ONEFORMER |= {"tiny_oneformer_dinat_seed3": "D2DiNAT"}


@pytest.mark.parametrize("name", ONEFORMER)
def test_oneformer_backbone_equals_published_values(name: str) -> None:
    fixture = load_fixture(f"oneformer/{name}")
    overrides = fixture.json("config_json")["overrides"]
    pairs = [pair for pair in zip(overrides[::2], overrides[1::2]) if pair[0].startswith(("MODEL.CONV", "MODEL.DiNAT"))]
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", ONEFORMER[name], *(item for pair in pairs for item in pair)])
    model = torch.nn.Module()
    model.backbone = build_backbone(cfg).eval()
    expected = {key: shape for key, shape in fixture.state_dict_shapes().items() if key.startswith("backbone.")}
    assert [(key, tuple(tensor.shape)) for key, tensor in model.state_dict().items()] == list(expected.items())
    fill_model(model, fixture.seed)
    mean, std = torch.tensor([[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]])[..., None, None]
    images = [(fixture.tensor(f"input/image_{index}") - mean) / std for index in range(2)]
    height, width = (max(-(-image.shape[dim] // 32) * 32 for image in images) for dim in (1, 2))
    padded = [F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images]
    with torch.no_grad():
        features = model.backbone(torch.stack(padded))
    for feature_name, feature in features.items():
        assert_close_to_peak(feature, fixture.tensor(f"backbone/{feature_name}"), tolerance=2e-6)


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("cityscapes_convnext_large", ["MODEL.BACKBONE.NAME", "D2ConvNeXt"]),
        (
            "coco_dinat_large",
            [
                *("MODEL.BACKBONE.NAME", "D2DiNAT", "MODEL.DiNAT.EMBED_DIM", 192, "MODEL.DiNAT.KERNEL_SIZE", 11),
                *("MODEL.DiNAT.NUM_HEADS", [6, 12, 24, 48], "MODEL.DiNAT.MLP_RATIO", 2.0),
                *("MODEL.DiNAT.DILATIONS", [[1, 20, 1], [1, 5, 1, 10], [1, 2, 1, 3, 1, 4] * 3, [1, 2, 1, 2, 1]]),
            ],
        ),
    ],
)
def test_oneformer_backbone_state_dict_is_that_of_the_full_size_model(recipe: str, overrides: list[Any]) -> None:
    cfg = get_cfg()
    cfg.merge_from_list(overrides)
    with torch.device("meta"):
        state = build_backbone(cfg).state_dict()
    reference = json.loads((REFERENCE_DIR / "oneformer/state_dict" / f"{recipe}.json").read_text())["state_dict"]
    expected = [(key, shape) for key, (shape, _) in reference.items() if key.startswith("backbone.")]
    assert [(f"backbone.{key}", list(tensor.shape)) for key, tensor in state.items()] == expected


def test_build_backbone_takes_input_channels_from_pixel_mean() -> None:
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.PIXEL_MEAN = [0.0] * 5
    assert build_backbone(cfg).stem.conv1.in_channels == 5
    assert build_backbone(cfg, ShapeSpec(channels=2)).stem.conv1.in_channels == 2


def test_build_backbone_names_key_and_choices_of_an_unknown_name() -> None:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_vgg"
    with pytest.raises(ConfigError, match=r"MODEL\.BACKBONE\.NAME: .*D2SwinTransformer.*found 'build_vgg'"):
        build_backbone(cfg)


@pytest.mark.parametrize("name", ["resnet18", "swin", "convnext", "dinat"])
def test_backbone_exports_with_any_batch_size(name: str) -> None:
    backbone = BACKBONES[name]().eval()
    with torch.no_grad():
        exported = torch.export.export(
            backbone, (torch.randn(2, 3, 40, 56),), dynamic_shapes=({0: torch.export.Dim("B", min=1, max=8)},)
        ).module()
        images = torch.randn(3, 3, 40, 56)
        expected, actual = backbone(images), exported(images)
    for feature_name, feature in actual.items():
        assert_close_to_peak(feature, expected[feature_name], tolerance=1e-5)
