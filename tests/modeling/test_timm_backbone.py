"""Backbones of timm: what every backbone promises, freezing, weights, and a backbone of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from mask2former import build_model
from mask2former.config import CfgNode, get_cfg
from mask2former.errors import CheckpointError, ConfigError
from mask2former.modeling import BACKBONE_REGISTRY
from mask2former.modeling.backbone import Backbone, TimmBackbone, TimmPlainTransformer, build_backbone
from mask2former.modeling.backbone.timm import SimpleFeaturePyramid
from mask2former.structures import ShapeSpec
from tests.parity import assert_close_to_peak

NETWORKS = ["resnet10t", "convnext_atto", "mobilenetv3_small_050"]
TRANSFORMERS = ["vit_tiny_patch16_224", "vit_small_patch14_dinov2", "vit_small_patch16_dinov3"]
BIG_NAMES = {
    "convnext_large": (192, 384, 768, 1536),
    "tf_efficientnetv2_m": (48, 80, 176, 512),
    "swin_base_patch4_window12_384": (128, 256, 512, 1024),
    "vit_large_patch14_reg4_dinov2": (256, 256, 256, 256),
    "vit_large_patch16_dinov3": (256, 256, 256, 256),
}


def config(name: str, **options: Any) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.TIMM.NAME = name
    for key, value in options.items():
        cfg.MODEL.TIMM[key] = value
    return cfg


def build(name: str, **options: Any) -> TimmBackbone:
    backbone = build_backbone(config(name, **options))
    assert isinstance(backbone, TimmBackbone)
    return backbone


def tiny_transformer(patch_size: int, **options: Any) -> TimmPlainTransformer:
    network = timm.models.VisionTransformer(
        img_size=64, patch_size=patch_size, embed_dim=24, depth=3, num_heads=2, num_classes=0, dynamic_img_size=True
    )
    return TimmPlainTransformer(network, pyramid_channels=16, **options)


@pytest.mark.parametrize("name", NETWORKS + TRANSFORMERS)
@pytest.mark.parametrize("size", [(61, 93), (33, 7), (1, 1)])
def test_timm_feature_shapes_are_as_promised(name: str, size: tuple[int, int]) -> None:
    backbone = build(name).eval()
    with torch.no_grad():
        features = backbone(torch.randn(2, 3, *size))
    promised = backbone.output_shape()
    assert [spec.stride for spec in promised.values()] == [4, 8, 16, 32]
    assert list(features) == list(promised) == ["res2", "res3", "res4", "res5"]
    for feature, spec in zip(features.values(), promised.values()):
        assert feature.shape == (2, spec.channels, *(-(-side // spec.stride) for side in size))
        assert feature.isfinite().all()


@pytest.mark.parametrize("name", BIG_NAMES)
def test_timm_builds_big_networks_by_name(name: str) -> None:
    with torch.device("meta"):
        shapes = build(name).output_shape()
    assert tuple(spec.channels for spec in shapes.values()) == BIG_NAMES[name]


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224"])
def test_timm_gradients_reach_every_parameter(name: str) -> None:
    backbone = build(name).train()
    features = backbone(torch.randn(2, 3, 64, 64))
    sum((feature * torch.randn_like(feature)).sum() for feature in features.values()).backward()
    assert not [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224"])
def test_timm_computes_only_wanted_features(name: str) -> None:
    chosen = build(name, OUT_FEATURES=["res4", "res3"]).eval()
    complete = build(name).eval()
    weights = chosen.state_dict()
    for index, scale in {"0": "1", "1": "2"}.items():  # of the pyramid: scales 1 and 2 are res3 and res4
        prefix, other = f"pyramid.scales.{1 - int(index)}.", f"pyramid.scales.{scale}."
        weights |= {other + k.removeprefix(prefix): v for k, v in chosen.state_dict().items() if k.startswith(prefix)}
        weights = {k: v for k, v in weights.items() if "scales.0" not in k}
    complete.load_state_dict({k: v for k, v in weights.items() if k in complete.state_dict()}, strict=False)
    image = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        features, expected = chosen(image), complete(image)
    assert list(features) == ["res4", "res3"]
    for feature_name, feature in features.items():
        assert_close_to_peak(feature, expected[feature_name], tolerance=1e-5)
    assert sum(p.numel() for p in chosen.parameters()) < sum(p.numel() for p in complete.parameters())


def test_timm_takes_input_channels_from_pixel_mean() -> None:
    cfg = config("resnet10t")
    cfg.MODEL.PIXEL_MEAN = [0.0] * 5
    assert build_backbone(cfg)(torch.randn(1, 5, 32, 32))["res5"].shape == (1, 512, 1, 1)


@pytest.mark.parametrize("patch_size", [14, 16])
def test_pyramid_cells_lie_where_their_stride_says(patch_size: int) -> None:
    num_tokens = 16
    pyramid = SimpleFeaturePyramid(1, 1, patch_size=patch_size, strides=(16,))
    pyramid.scales[0] = nn.Identity()
    centres = (torch.arange(num_tokens) + 0.5) * patch_size  # pixels
    side = num_tokens * patch_size // 16 * 16
    (resampled,) = pyramid(centres.expand(1, 1, num_tokens, num_tokens), size=(side, side))
    expected = (torch.arange(side // 16) + 0.5) * 16
    torch.testing.assert_close(resampled[0, 0], expected.expand(side // 16, -1))


def test_timm_transformer_sees_positions_at_every_size() -> None:
    backbone = tiny_transformer(14).eval()
    nn.init.normal_(backbone.network.pos_embed)
    with torch.no_grad():
        for size in ((28, 70), (150, 31)):
            before = backbone(torch.zeros(1, 3, *size))["res4"]
            assert before.flatten(2).std(dim=2).max() > 1e-3


@pytest.mark.parametrize("freeze_at", [0, 1, 2, -1])
def test_timm_freezes_layers_from_the_input(freeze_at: int) -> None:
    backbone = tiny_transformer(16, freeze_at=freeze_at).train()
    layers = backbone.parameter_layers()
    for name, parameter in backbone.named_parameters():
        is_frozen = name in layers and (freeze_at == -1 or layers[name] < freeze_at)
        assert parameter.requires_grad != is_frozen, name
    assert backbone.network.blocks[0].training == (freeze_at in (0, 1))
    assert backbone.pyramid.training
    sum(feature.sum() for feature in backbone(torch.randn(1, 3, 32, 32)).values()).backward()


@pytest.mark.parametrize("freeze", [True, False])
def test_timm_freezes_batch_norm(freeze: bool) -> None:
    backbone = build("resnet10t", FREEZE_BN=freeze).train()
    before = backbone.network.bn1.running_mean.clone()
    backbone(torch.randn(2, 3, 32, 32))
    assert torch.equal(backbone.network.bn1.running_mean, before) == freeze
    assert backbone.network.bn1.weight.requires_grad


def test_timm_checkpointing_changes_no_gradient() -> None:
    torch.manual_seed(0)
    plain, saving = tiny_transformer(16), tiny_transformer(16, use_checkpoint=True)
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, 48, 32)
    gradients = []
    for backbone in (plain.train(), saving.train()):
        sum(feature.square().mean() for feature in backbone(image).values()).backward()
        gradients.append(backbone.network.patch_embed.proj.weight.grad)
    torch.testing.assert_close(*gradients)


def test_timm_adapts_weights_of_another_image_size() -> None:
    source = timm.models.VisionTransformer(
        img_size=96, patch_size=16, embed_dim=24, depth=3, num_heads=2, num_classes=7, dynamic_img_size=True
    )
    backbone = tiny_transformer(16)
    adapted = backbone.adapt_weights(source.state_dict())
    missing, unexpected = backbone.load_state_dict(adapted, strict=False)
    assert all(name.startswith("pyramid.") for name in missing)
    assert set(unexpected) == {"network.head.weight", "network.head.bias"}
    assert torch.equal(backbone.network.blocks[2].mlp.fc1.weight, source.blocks[2].mlp.fc1.weight)


def test_timm_refuses_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"MODEL\.TIMM\.NAME: .*convnext_tiny.*found 'convnext_tinny'"):
        build("convnext_tinny")
    with pytest.raises(ConfigError, match="'beit_base_patch16_224' takes one size only"), torch.device("meta"):
        build("beit_base_patch16_224")
    with pytest.raises(ConfigError, match="expected some of res4, res5"), torch.device("meta"):
        build("levit_128")
    with pytest.raises(ConfigError, match=r"OUT_INDICES: the network has 4 maps; found \[7\]"):
        build("convnext_atto", OUT_INDICES=[7])
    with pytest.raises(ConfigError, match=r"OUT_INDICES: .*takes one of its 12 maps"):
        build("vit_tiny_patch16_224", OUT_INDICES=[1, 2])
    with pytest.raises(ConfigError, match=r"OUT_INDICES: expected maps of different strides"):
        build("resnet10t", OUT_INDICES=[0, 1])
    with pytest.raises(CheckpointError, match="not weights of VisionTransformer"):
        tiny_transformer(16).adapt_weights({"patch_embed.proj.weight": torch.zeros(3)})


def test_timm_out_indices_choose_maps() -> None:
    assert list(build("convnext_atto", OUT_INDICES=[-1, 2], OUT_FEATURES=["res4", "res5"]).output_shape()) == [
        "res4",
        "res5",
    ]
    transformer = build("vit_tiny_patch16_224", OUT_INDICES=[2])
    assert len(transformer.network.blocks) == 3


@pytest.fixture
def toy_backbone() -> Iterator[str]:
    """A backbone registered from outside the package, as a user's file would."""

    @BACKBONE_REGISTRY.register()
    class ToyBackbone(Backbone):
        def __init__(self, *, width: int, in_channels: int) -> None:
            specs = {f"res{i + 2}": ShapeSpec(channels=width, stride=4 * 2**i) for i in range(4)}
            super().__init__(specs, out_features=tuple(specs))
            self.stem = nn.Conv2d(in_channels, width, 4, stride=4)
            self.downs = nn.ModuleList(nn.Conv2d(width, width, 2, stride=2) for _ in range(3))

        @classmethod
        def from_config(cls, cfg: Any, input_shape: ShapeSpec) -> dict[str, Any]:
            return {"width": 8, "in_channels": input_shape.channels}

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            maps = [self.stem(x)]
            for down in self.downs:
                maps.append(down(maps[-1]))
            return dict(zip(self.out_features, maps))

    yield "ToyBackbone"
    BACKBONE_REGISTRY._obj_map.pop("ToyBackbone")


def tiny_model_config(cfg: CfgNode) -> CfgNode:
    cfg.merge_from_file("configs/shapes/panoptic-segmentation/maskformer2_R18_quickstart.yaml")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.MASK_FORMER.DEC_LAYERS, cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS = 2, 1
    return cfg


@pytest.mark.parametrize("name", ["ToyBackbone", "build_timm_backbone"])
def test_model_trains_with_any_backbone(name: str, toy_backbone: str) -> None:
    cfg = tiny_model_config(get_cfg())
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.TIMM.NAME = name, "mobilenetv3_small_050"
    model = build_model(cfg).eval()
    with torch.no_grad():
        result = model([{"image": torch.randint(0, 255, (3, 45, 70)), "height": 45, "width": 70}])[0]
    assert result["panoptic_seg"][0].shape == (45, 70)


def test_toy_backbone_has_layers_without_saying_so(toy_backbone: str) -> None:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = toy_backbone
    layers = build_backbone(cfg).parameter_layers()
    assert layers == {
        "stem.weight": 0,
        "stem.bias": 0,
        **{f"downs.{i}.{kind}": i + 1 for i in range(3) for kind in ("weight", "bias")},
    }


def test_load_backbone_weights_reads_local_files(tmp_path: Path) -> None:
    from mask2former.engine.building import load_backbone_weights

    source = timm.create_model("mobilenetv3_small_050")
    torch.save({"state_dict": source.state_dict()}, tmp_path / "weights.pth")
    cfg = tiny_model_config(config("mobilenetv3_small_050", WEIGHTS=str(tmp_path / "weights.pth")))
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    model = build_model(cfg)
    report = load_backbone_weights(cfg, model)
    assert report is not None
    assert report.is_complete
    assert torch.equal(model.backbone.network.conv_stem.weight, source.conv_stem.weight)
    torch.save({"foreign": torch.zeros(2)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"weights\.pth: a checkpoint for another model"):
        load_backbone_weights(cfg, model)
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    with pytest.raises(ConfigError, match=r"MODEL\.TIMM\.WEIGHTS: expected MODEL\.BACKBONE\.NAME build_timm_backbone"):
        load_backbone_weights(cfg, build_model(cfg))
