"""Accelerated models: the results of plain ones, and only what is known takes another class."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.config import get_cfg
from mask2former.modeling import META_ARCH_REGISTRY, MaskFormer, MSDeformAttnPixelDecoder, accelerate, build_model
from mask2former.modeling.fast import encoder, twins
from mask2former.modeling.fast.convolution import FastConv2d
from mask2former.modeling.fast.layers import FastLinear
from mask2former.modeling.layers import Conv2d, FrozenBatchNorm2d, MultiheadAttention
from mask2former.modeling.pixel_decoder.deformable_encoder import MSDeformAttn, MSDeformAttnEncoderLayer
from mask2former.structures import ShapeSpec
from tests.parity import assert_close_to_peak, build_fixture_model, load_fixture

FIXTURES = ["resnet_panoptic", "swin_panoptic", "video", "maskformer_v1", "maskformer_v1_encoder", "per_pixel_plus"]


def both(name: str) -> tuple[Any, Any]:
    """The model of a fixture of plain layers, and accelerated."""
    fixture = load_fixture(f"tiny_{name}")
    plain, fast = (build_fixture_model(fixture, accelerated=accelerated) for accelerated in (False, True))
    return plain, fast


def count_twins(model: nn.Module) -> int:
    return sum(twins.plain_type(module) is not type(module) for module in model.modules())


def logits_of(model: Any, images: Tensor) -> list[Tensor]:
    predictions = model.predict(images)
    if isinstance(predictions[0], Tensor):
        return list(predictions)
    return [logits for layer in predictions for logits in (layer.class_logits, layer.mask_logits())]


@pytest.mark.parametrize("plain", twins._TWINS, ids=lambda plain: plain.__name__)
def test_twin_stands_for_its_plain_layer(plain: type[nn.Module]) -> None:
    twin = twins._TWINS[plain]
    found = twins.source_digest(*twin.sources)
    assert twin.digest in ("", found), (
        f"{plain.__name__} was edited: see whether {twin.cls.__name__} still computes the same, then write {found}"
    )
    assert (not twin.digest) == plain.__module__.startswith("torch.") or not vars(plain).keys() & {"forward"}


@pytest.mark.parametrize("name", FIXTURES)
def test_accelerated_model_infers_as_the_plain_one(name: str) -> None:
    plain, fast = both(name)
    assert count_twins(plain) == 0
    assert count_twins(fast) > 20
    assert list(fast.state_dict()) == list(plain.state_dict())
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        expected_features = plain.features(images)
        for key, maps in fast.features(images).items():
            assert_close_to_peak(maps, expected_features[key], tolerance=1e-5)
        # Decoders of random weights make more of float32's rounding than those of a checkpoint.
        expected = logits_of(plain.double(), images.double())
        for found, one in zip(logits_of(fast.double(), images.double()), expected, strict=True):
            assert_close_to_peak(found, one, tolerance=1e-10)


@pytest.mark.parametrize("name", ["resnet_panoptic", "swin_panoptic"])
def test_accelerated_backbone_and_pixel_decoder_have_the_gradients_of_plain_ones(name: str) -> None:
    images = torch.randn(2, 3, 64, 96)
    results = []
    for model in both(name):
        torch.manual_seed(3)
        mask_features, _, maps = model.train().sem_seg_head.pixel_decoder.forward_features(model.features(images))
        sum((m * torch.randn(m.shape)).mean() for m in (mask_features, *maps)).backward()
        results.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    expected, found = results
    assert found.keys() == expected.keys()
    assert len(found) > 50
    for key, grad in found.items():
        torch.testing.assert_close(
            grad, expected[key], rtol=1e-3, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_accelerated_part_is_what_it_was_to_everybody_else() -> None:
    layer = Conv2d(4, 4, 3, padding=1, norm=FrozenBatchNorm2d(4), activation=F.relu)
    parameters = dict(layer.named_parameters())
    assert accelerate(accelerate(layer)) is layer
    assert type(layer) is FastConv2d
    assert isinstance(layer, Conv2d)
    assert all(layer.get_parameter(name) is parameter for name, parameter in parameters.items())
    x = torch.randn(1, 4, 8, 8)
    for duplicate in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(duplicate) is FastConv2d
        assert torch.equal(duplicate(x), layer(x))


class Subclass(Conv2d):
    """Somebody's own."""


def wrapped() -> nn.Module:
    layer = Conv2d(4, 4, 3)
    layer.forward = lambda x: x  # type: ignore[method-assign]
    return layer


def parametrized() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(Conv2d(4, 4, 3))


@pytest.mark.parametrize("build", [lambda: Subclass(4, 4, 3), wrapped, parametrized], ids=["sub", "wrapped", "other"])
def test_part_that_somebody_changed_is_left(build: Callable[[], nn.Module]) -> None:
    module = nn.Sequential(build(), Conv2d(4, 4, 3))
    before = type(module[0])
    accelerate(module)
    assert type(module[0]) is before
    assert type(module[1]) is FastConv2d


@pytest.mark.parametrize("edited", [MSDeformAttnEncoderLayer, MSDeformAttn])
def test_part_whose_source_was_edited_is_left(edited: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        return args[0] + 1

    monkeypatch.setattr(edited, "forward", forward)
    layer = MSDeformAttnEncoderLayer(8, num_levels=1, num_heads=2, num_points=1, hidden_channels=8, dropout=0.0)
    assert type(accelerate(layer)) is MSDeformAttnEncoderLayer
    assert type(layer.linear1) is FastLinear


def test_source_digest_does_not_mind_comments() -> None:
    class One(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            """Once."""
            return x + 1  # as it is

    class Two(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    class Three(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 2

    assert twins.source_digest(One) == twins.source_digest(Two) != twins.source_digest(Three)


def test_layers_of_others_networks_are_left_but_not_parts_of_ours() -> None:
    class Network(nn.Module):  # of a package of its own
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 4)
            self.attention = MultiheadAttention(4, 2)

    model = accelerate(nn.Sequential(Network(), nn.Linear(4, 4)))
    assert type(model[0].head) is nn.Linear
    assert type(model[0].attention.out_proj) is FastLinear
    assert type(model[1]) is FastLinear


def test_subclass_of_a_meta_architecture_has_accelerated_parts() -> None:
    class Own(MaskFormer):
        """Somebody's own."""

    cfg = get_cfg()
    cfg.merge_from_file("configs/shapes/panoptic-segmentation/maskformer2_R18_quickstart.yaml")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", "OwnArchitecture"])
    META_ARCH_REGISTRY._do_register("OwnArchitecture", Own)
    try:
        model = build_model(cfg)
    finally:
        META_ARCH_REGISTRY._obj_map.pop("OwnArchitecture")
    assert type(model) is Own
    assert type(model.sem_seg_head.pixel_decoder) is encoder.FastMSDeformAttnPixelDecoder


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet_panoptic", "swin_panoptic"])
def test_accelerated_model_computes_on_another_device(name: str) -> None:
    model = build_fixture_model(load_fixture(f"tiny_{name}")).to("meta")
    features = model.features(torch.zeros(1, 3, 64, 96, device="meta"))
    mask_features, _, maps = model.sem_seg_head.pixel_decoder.forward_features(features)
    assert {m.device.type for m in (mask_features, *maps)} == {"meta"}
    assert mask_features.shape[-2:] == (16, 24)


@torch.no_grad()
def test_encoder_leaves_to_hooks_what_they_keep() -> None:
    shapes = {f"res{index}": ShapeSpec(channels=8, stride=2**index) for index in range(2, 6)}
    decoder = MSDeformAttnPixelDecoder(
        shapes,
        transformer_in_features=["res3", "res4", "res5"],
        transformer_enc_layers=2,
        transformer_nheads=2,
        conv_dim=32,
        mask_dim=32,
    ).eval()
    features = {name: torch.randn(1, 8, 64 >> index, 64 >> index) for index, name in enumerate(shapes, start=2)}
    expected = decoder.forward_features(features)[0]
    accelerate(decoder)
    torch.testing.assert_close(decoder.forward_features(features)[0], expected, rtol=1e-4, atol=1e-5)
    seen: list[Tensor] = []
    first = decoder.transformer.encoder.layers[0]
    first.register_forward_hook(lambda module, inputs, output: seen.extend((output, output.clone())))
    torch.testing.assert_close(decoder.forward_features(features)[0], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(seen[0], seen[1])
