"""Models that only infer: batch norms merged, weights in the type of MODEL.PRECISION, and the same results."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from mask2former.checkpoint import load_weights
from mask2former.errors import CheckpointError
from mask2former.modeling import build_model, prepare_for_inference
from mask2former.modeling.backbone.window_attention import WindowAttention
from mask2former.modeling.layers import Conv2d, FrozenBatchNorm2d, get_norm
from tests.parity import assert_close_to_peak, fill_model, fixture_config, load_fixture, register_metadata

RESNETS = ["resnet_panoptic", "video", "maskformer_v1", "maskformer_v1_encoder", "per_pixel", "per_pixel_plus"]
FIXTURES = [*RESNETS, "swin_panoptic"]
TIMM_NETWORKS = ["mobilenetv3_small_050", "vit_tiny_patch16_224"]


def build(name: str, *overrides: Any) -> Any:
    """The model of a fixture, in evaluation mode with the weights of the rule."""
    register_metadata()
    fixture = load_fixture(f"tiny_{name}")
    cfg = fixture_config(fixture)
    cfg.merge_from_list(list(overrides))
    model = build_model(cfg).eval()
    fill_model(model, fixture.seed)
    return model


def build_with_timm(network: str, *overrides: Any) -> Any:
    names = ("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", network)
    return build("resnet_panoptic", *names, "MODEL.TIMM.PYRAMID_CHANNELS", 16, *overrides)


def logits_of(model: Any) -> list[Tensor]:
    """All logits of an image, or of a clip of three frames."""
    torch.manual_seed(0)
    images = torch.randn(3, 3, 64, 96).to(model.pixel_mean.dtype)
    with torch.inference_mode():
        if "windows" in vars(model) and model.windows.length:
            frames = {"image": list(images.mul(50).add(128).clamp(0, 255).byte())}
            predictions = [model._predict_clip(frames)[0]]
        else:
            predictions = model.predict(images)
        if isinstance(predictions[0], Tensor):
            return list(predictions)
        return [logits for last in predictions for logits in (last.class_logits, last.mask_logits())]


class CastParameters(TorchDispatchMode):
    """Collects the names of the parameters that are cast, whole or in part."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._names = {tensor.untyped_storage().data_ptr(): name for name, tensor in model.named_parameters()}
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        is_conversion = func.overloadpacket in (torch.ops.aten.to, torch.ops.aten._to_copy)  # the first in inference
        if is_conversion and output.dtype != args[0].dtype:
            self.found.add(self._names.get(args[0].untyped_storage().data_ptr(), ""))
        return output

    def of(self, model: nn.Module) -> set[str]:
        with self:
            logits_of(model)
        return self.found - {""}


@pytest.mark.parametrize("name", FIXTURES)
def test_half_precision_gives_the_bits_of_merged_norms_alone(name: str) -> None:
    prepared = prepare_for_inference(build(name, "MODEL.PRECISION", "bfloat16"))
    merged = prepare_for_inference(build(name))
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    merged.inference_dtype = torch.bfloat16
    cast_at_each_call = CastParameters(merged).of(merged)
    for found, expected in zip(logits_of(prepared), logits_of(merged), strict=True):
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, expected)
    half = {key for key, parameter in prepared.named_parameters() if parameter.dtype == torch.bfloat16}
    assert half == cast_at_each_call
    assert CastParameters(prepared).of(prepared) == set()


@pytest.mark.parametrize("name", FIXTURES)
def test_results_are_the_same_up_to_rounding(name: str) -> None:
    # Decoders of random weights make more of float32's rounding than those of a checkpoint: they compare in float64.
    model, images = build(name), torch.randn(2, 3, 64, 96)
    exact = copy.deepcopy(model).double()
    with torch.inference_mode():
        features, expected = model.features(images), logits_of(exact)
        assert prepare_for_inference(model) is model
        for key, maps in model.features(images).items():
            assert_close_to_peak(maps, features[key], tolerance=1e-5)
    for found, before in zip(logits_of(prepare_for_inference(exact)), expected, strict=True):
        assert_close_to_peak(found, before, tolerance=1e-12)
    assert not any(isinstance(module, (FrozenBatchNorm2d, _BatchNorm)) for module in model.modules())


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "FrozenBN"])
def test_every_batch_norm_is_merged_into_its_convolution(norm: str) -> None:
    convolution = Conv2d(4, 6, 3, padding=1, norm=get_norm(norm, 6))
    for name, tensor in convolution.norm.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if name.endswith(("weight", "var")) else tensor.normal_()
    model, x = nn.Sequential(convolution, Conv2d(6, 6, 1, norm=nn.GroupNorm(2, 6))).eval(), torch.randn(2, 4, 9, 7)
    expected = model(x)
    prepare_for_inference(model)
    assert model[0].norm is None
    assert isinstance(model[1].norm, nn.GroupNorm)
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)


def test_weight_shared_by_two_convolutions_is_merged_with_the_norm_of_each() -> None:
    first, second = (Conv2d(4, 4, 3, padding=1, norm=FrozenBatchNorm2d(4)) for _ in range(2))
    second.weight, second.bias = first.weight, first.bias
    second.norm.weight.fill_(3.0)
    model, x = nn.Sequential(first, second).eval(), torch.randn(2, 4, 9, 7)
    expected = model(x)
    torch.testing.assert_close(prepare_for_inference(model)(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_norm_that_a_hook_waits_for_stays(norm: str) -> None:
    model, calls = Conv2d(4, 4, 3, padding=1, norm=get_norm(norm, 4)).eval(), []
    model.norm.register_forward_hook(lambda *_: calls.append("hook"))
    prepare_for_inference(model)(torch.randn(1, 4, 9, 7))
    assert calls == ["hook"]


def test_weight_that_a_hook_makes_stays() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the older way, which checkpoints still hold
        model = nn.utils.weight_norm(Conv2d(4, 4, 3, padding=1, norm=FrozenBatchNorm2d(4))).eval()
    x = torch.randn(1, 4, 9, 7)
    expected = model(x)
    torch.testing.assert_close(prepare_for_inference(model)(x), expected)


def test_second_time_changes_nothing() -> None:
    model = prepare_for_inference(build("resnet_panoptic", "MODEL.PRECISION", "bfloat16"))
    before = dict(model.named_parameters())
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prepare_for_inference(model)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is parameter for name, parameter in before.items())
    assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())


def test_model_in_training_mode_is_refused_and_unchanged() -> None:
    model = build("resnet_panoptic", "MODEL.PRECISION", "bfloat16").train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="expected a model in evaluation mode"):
        prepare_for_inference(model)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("network", TIMM_NETWORKS)
def test_networks_of_timm_are_left_and_what_follows_is_cast(network: str) -> None:
    prepared = build_with_timm(network, "MODEL.PRECISION", "bfloat16")
    before = copy.deepcopy(prepared.backbone.network.state_dict())
    merged = copy.deepcopy(prepared)
    merged.inference_dtype = None
    prepare_for_inference(merged).inference_dtype = torch.bfloat16
    prepare_for_inference(prepared)
    for model in (prepared, merged):
        after = model.backbone.network.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    half = {name for name, parameter in prepared.named_parameters() if parameter.dtype == torch.bfloat16}
    assert any(name.startswith("sem_seg_head.") for name in half)
    assert any(name.startswith("backbone.pyramid.") for name in half) == network.startswith("vit")
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    for found, expected in zip(logits_of(prepared), logits_of(merged), strict=True):
        assert torch.equal(found, expected)


class DoublingLinear(nn.Linear):
    """Reads its weight, as parts of one's own may."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight + self.weight, self.bias)


def test_what_others_wrote_is_left_as_it_is() -> None:
    model = nn.Sequential(DoublingLinear(4, 4), nn.Linear(4, 4))
    model.inference_dtype = torch.bfloat16
    prepare_for_inference(model.eval())
    assert [layer.weight.dtype for layer in model] == [torch.float32, torch.bfloat16]


def test_batch_norm_without_statistics_is_left_unmerged() -> None:
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    model, x = nn.Sequential(Conv2d(4, 4, 1, norm=norm)).eval(), torch.randn(2, 4, 5, 6)
    expected = model(x)
    prepare_for_inference(model)
    assert model[0].norm is norm
    assert torch.equal(model(x), expected)


def test_prepared_model_refuses_training_and_weights(tmp_path: Path) -> None:
    model, whole = build("resnet_panoptic"), nn.Module()
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    whole.part = model
    prepare_for_inference(copy.deepcopy(whole).eval())
    assert whole.train().part.training  # that of a copy leaves it free
    prepare_for_inference(model.eval())
    for refusing in (model, whole, copy.deepcopy(model)):
        with pytest.raises(RuntimeError, match="prepared for inference and cannot be trained"):
            refusing.train()
        assert not refusing.eval().training
    with pytest.raises(CheckpointError, match="prepared for inference"):
        load_weights(model, tmp_path / "weights.pth")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_position_bias_is_gathered_once_and_results_keep_their_bits(precision: str) -> None:
    model = build("swin_panoptic", "MODEL.PRECISION", precision)
    prepared = prepare_for_inference(copy.deepcopy(model))
    attentions = [module for module in prepared.modules() if isinstance(module, WindowAttention)]
    assert len(attentions) > 0
    for module in attentions:
        assert module.position_bias() is module.position_bias()
        assert module.position_bias().dtype == getattr(torch, precision)
    assert not any("kept_bias" in name for name in prepared.state_dict())
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode(), model.inference_precision():
        expected, found = model.features(images), prepared.features(images)
    assert all(torch.equal(found[name], maps) for name, maps in expected.items())
