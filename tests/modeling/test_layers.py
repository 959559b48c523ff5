"""Layers that several components share."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.errors import ConfigError
from mask2former.modeling import accelerate, prepare_for_inference
from mask2former.modeling.layers import (
    MLP,
    NORM_NAMES,
    Conv2d,
    DropPath,
    FrozenBatchNorm2d,
    LayerNorm2d,
    PositionEmbeddingSine,
    SizeCache,
    SyncBatchNorm,
    freeze_batch_norm,
    get_norm,
    sine_position_encoding,
)
from tests.parity import load_fixture


def randomise(norm: nn.Module) -> None:
    """Statistics and affine terms as after training."""
    with torch.no_grad():
        for name, tensor in norm.state_dict().items():
            if name.endswith(("weight", "running_var")):
                tensor.uniform_(0.5, 2.0)
            elif tensor.is_floating_point():
                tensor.normal_()


def trained_batch_norm(num_features: int, **options: float) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(num_features, **options).eval()
    randomise(norm)
    return norm


# --- norms


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_frozen_batch_norm_equals_batch_norm_in_evaluation(
    requires_grad: bool, memory_format: torch.memory_format
) -> None:
    norm = trained_batch_norm(6, eps=1e-3)
    frozen = FrozenBatchNorm2d.from_batch_norm(norm)
    x = torch.randn(2, 6, 5, 7).to(memory_format=memory_format).requires_grad_(requires_grad)
    torch.testing.assert_close(frozen(x), norm(x))
    if requires_grad:
        weights = torch.randn(2, 6, 5, 7)
        expected, actual = (torch.autograd.grad((layer(x) * weights).sum(), x)[0] for layer in (norm, frozen))
        torch.testing.assert_close(actual, expected)


def test_frozen_batch_norm_state_is_four_buffers() -> None:
    frozen = FrozenBatchNorm2d(3)
    assert list(frozen.state_dict()) == ["weight", "bias", "running_mean", "running_var"]
    assert not list(frozen.parameters())
    assert frozen.eps == 1e-5


def test_frozen_batch_norm_loads_state_of_trainable_batch_norm() -> None:
    norm = trained_batch_norm(3)
    frozen = FrozenBatchNorm2d(3)
    result = frozen.load_state_dict(norm.state_dict(), strict=False)
    assert not result.missing_keys
    assert torch.equal(frozen.running_var, norm.running_var)


def test_frozen_batch_norm_of_bfloat16_map_stays_bfloat16() -> None:
    frozen = FrozenBatchNorm2d.from_batch_norm(trained_batch_norm(4))
    x = torch.randn(1, 4, 3, 3)
    for requires_grad in (False, True):
        actual = frozen(x.bfloat16().requires_grad_(requires_grad))
        assert actual.dtype == torch.bfloat16
        torch.testing.assert_close(actual.float(), frozen(x), rtol=2e-2, atol=3e-2)


def test_freeze_batch_norm_reaches_nested_norms_and_leaves_others() -> None:
    module = nn.Sequential(nn.Sequential(trained_batch_norm(4), nn.GroupNorm(2, 4)), nn.SyncBatchNorm(4)).eval()
    x = torch.randn(1, 4, 3, 3)
    expected = module(x)
    frozen = freeze_batch_norm(module)
    assert [type(m) for m in frozen.modules() if isinstance(m, FrozenBatchNorm2d | nn.GroupNorm)] == [
        FrozenBatchNorm2d,
        nn.GroupNorm,
        FrozenBatchNorm2d,
    ]
    torch.testing.assert_close(frozen(x), expected)


@pytest.mark.parametrize("name", NORM_NAMES)
def test_get_norm_keeps_shape_in_training(name: str) -> None:
    norm = get_norm(name, 32)
    if name == "":
        assert norm is None
        return
    assert norm.train()(torch.randn(2, 32, 3, 5)).shape == (2, 32, 3, 5)


def test_get_norm_calls_a_callable_and_refuses_unknown_names() -> None:
    assert isinstance(get_norm(lambda channels: nn.InstanceNorm2d(channels), 3), nn.InstanceNorm2d)
    with pytest.raises(ConfigError, match="'BatchNorm'"):
        get_norm("BatchNorm", 3)
    with pytest.raises(ConfigError, match="divisible by 32, found 48"):
        get_norm("GN", 48)


def test_group_norm_takes_groups_of_one_value() -> None:
    norm = get_norm("GN", 32)
    assert isinstance(norm, nn.GroupNorm)
    randomise(norm)
    torch.testing.assert_close(norm(torch.randn(1, 32, 1, 1)).flatten(), norm.bias, atol=1e-3, rtol=0)
    x = torch.randn(2, 32, 3, 5)
    torch.testing.assert_close(norm(x), nn.functional.group_norm(x, 32, norm.weight, norm.bias, norm.eps))


def test_layer_norm_2d_normalises_channels_of_each_position() -> None:
    out = LayerNorm2d(8)(5 + 3 * torch.randn(2, 8, 3, 4))
    torch.testing.assert_close(out.mean(1), torch.zeros(2, 3, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(1, correction=0), torch.ones(2, 3, 4), atol=1e-4, rtol=0)


def _run_sync_batch_norm(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    case = torch.load(folder / "case.pt")
    norm = SyncBatchNorm(3)
    norm.load_state_dict(case["state"])
    x = case["inputs"][rank].requires_grad_()
    out = norm(x)
    (out * case["weights"][rank]).sum().backward()
    torch.save((out.detach(), x.grad, norm.running_mean, norm.running_var), folder / f"result_{rank}.pt")
    dist.destroy_process_group()


def test_sync_batch_norm_on_cpu_equals_batch_norm_of_all_processes(tmp_path: Path) -> None:
    norm = nn.BatchNorm2d(3)
    randomise(norm)
    # Different batch sizes: the shares of the processes are weighted by their positions.
    inputs = [7 + torch.randn(1, 3, 4, 5), torch.randn(2, 3, 4, 5)]
    weights = [torch.randn_like(x) for x in inputs]
    torch.save({"state": norm.state_dict(), "inputs": inputs, "weights": weights}, tmp_path / "case.pt")
    mp.spawn(_run_sync_batch_norm, args=(tmp_path,), nprocs=2)

    x = torch.cat(inputs).requires_grad_()
    out = norm(x)
    (out * torch.cat(weights)).sum().backward()
    results = [torch.load(tmp_path / f"result_{rank}.pt") for rank in range(2)]
    torch.testing.assert_close(torch.cat([result[0] for result in results]), out.detach())
    torch.testing.assert_close(torch.cat([result[1] for result in results]), x.grad, atol=1e-5, rtol=1e-4)
    for _, _, mean, var in results:
        torch.testing.assert_close(mean, norm.running_mean)
        torch.testing.assert_close(var, norm.running_var)


# --- convolution


def conv_with_frozen_norm(*, bias: bool = False) -> Conv2d:
    norm = FrozenBatchNorm2d.from_batch_norm(trained_batch_norm(6))
    return Conv2d(4, 6, 3, padding=1, stride=2, bias=bias, norm=norm, activation=F.relu_)


def test_conv_applies_norm_then_activation() -> None:
    conv = Conv2d(4, 6, 3, padding=1, bias=False, norm=trained_batch_norm(6), activation=F.relu_)
    x = torch.randn(2, 4, 5, 7)
    torch.testing.assert_close(conv(x), F.relu(conv.norm(F.conv2d(x, conv.weight, padding=1))))
    assert list(conv.state_dict())[:2] == ["weight", "norm.weight"]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (64, 65)])
def test_conv_with_frozen_norm_is_the_same_with_and_without_gradients(bias: bool, size: tuple[int, int]) -> None:
    conv = accelerate(conv_with_frozen_norm(bias=bias))
    x = torch.randn(1, 4, *size)
    expected = conv(x)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), expected.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("channels", "kernel_size"), [(4, 3), (64, 3), (64, 1)])  # as they are, Winograd, folded
@pytest.mark.parametrize("norm", ["FrozenBN", "GN"])
def test_hooks_of_a_norm_see_its_own_output_in_inference(norm: str, channels: int, kernel_size: int) -> None:
    padding, layer = kernel_size // 2, get_norm(norm, 64)
    conv = accelerate(Conv2d(channels, 64, kernel_size, padding=padding, bias=False, norm=layer, activation=F.relu))
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    x = torch.randn(1, channels, 96, 96).to(memory_format=torch.channels_last)
    seen: list[tuple[Tensor, Tensor]] = []
    layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    with torch.inference_mode():
        conv(x)
    ((given, returned),) = seen
    product = F.conv2d(x, conv.weight, padding=padding)
    torch.testing.assert_close(given, product, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(returned, layer(product), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_sum_with_a_convolution_calls_the_hooks_of_its_norm() -> None:
    conv = accelerate(Conv2d(16, 32, 1, bias=False, norm=FrozenBatchNorm2d(32)))
    x = torch.randn(1, 16, 64, 64).to(memory_format=torch.channels_last)
    total = torch.randn(1, 32, 64, 64).to(memory_format=torch.channels_last)
    expected, calls = conv.add_over(total.clone(), x), []
    conv.norm.register_forward_hook(lambda *_: calls.append("hook"))
    torch.testing.assert_close(conv.add_over(total, x), expected, atol=1e-5, rtol=1e-5)
    assert calls == ["hook"]


@pytest.mark.parametrize("bias", [False, True])
def test_folded_frozen_norm_is_equal_up_to_rounding(bias: bool) -> None:
    module = nn.Sequential(conv_with_frozen_norm(bias=bias), Conv2d(6, 6, 1, norm=nn.GroupNorm(2, 6)))
    x = torch.randn(2, 4, 9, 7)
    expected = module(x).detach()
    folded = prepare_for_inference(module.eval())
    assert folded[0].norm is None
    assert folded[1].norm is not None
    torch.testing.assert_close(folded(x).detach(), expected, atol=1e-5, rtol=1e-5)


# --- MLP and stochastic depth


def test_mlp_state_names_and_function() -> None:
    mlp = MLP(4, 8, 3, 3)
    assert list(mlp.state_dict()) == [f"layers.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")]
    x = torch.randn(2, 5, 4)
    first, second, third = mlp.layers
    torch.testing.assert_close(mlp(x), third(F.relu(second(F.relu(first(x))))))
    assert mlp(torch.zeros(2, 0, 4)).shape == (2, 0, 3)


def test_drop_path_drops_whole_samples_in_training_only() -> None:
    x = torch.ones(200, 3, 4)
    drop = DropPath(0.5)
    out = drop.train()(x)
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(out, out[:, :1, :1].expand_as(out))
    assert torch.equal(drop.eval()(x), x)


# --- position encoding


def test_position_encoding_matches_reference() -> None:
    fixture = load_fixture("ops")
    position = PositionEmbeddingSine(16)
    expected = fixture.tensor("position_encoding_sine_normalized_16")
    torch.testing.assert_close(position(torch.zeros(2, 8, 5, 7)), expected, atol=1e-6, rtol=0)
    expected = fixture.tensor("position_encoding_sine3d_normalized_16")
    torch.testing.assert_close(position(torch.zeros(1, 3, 8, 5, 7)), expected, atol=1e-6, rtol=0)


def test_position_encoding_of_one_frame_is_that_of_an_image() -> None:
    position = PositionEmbeddingSine(4)
    assert torch.equal(position(torch.zeros(2, 1, 8, 3, 5))[:, 0], position(torch.zeros(2, 8, 3, 5)))


def test_position_encoding_without_normalisation_counts_positions() -> None:
    encoding = PositionEmbeddingSine(2, normalize=False)(torch.zeros(1, 1, 2, 3))
    steps = torch.arange(1.0, 4.0)
    torch.testing.assert_close(encoding[0, 2], steps.sin().expand(2, 3))
    torch.testing.assert_close(encoding[0, 3], steps.cos().expand(2, 3))
    torch.testing.assert_close(encoding[0, 0], steps[:2, None].sin().expand(2, 3))


def test_position_encoding_follows_dtype_and_is_cached() -> None:
    position = PositionEmbeddingSine(4)
    assert position(torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16
    x = torch.zeros(1, 1, 2, 2)
    assert position(x) is position(x)
    assert not position.state_dict()


def test_position_encoding_sizes() -> None:
    assert sine_position_encoding((3, 5), 4).shape == (8, 3, 5)
    assert sine_position_encoding((2, 3, 5), 4).shape == (2, 8, 3, 5)


# --- size cache


def test_size_cache_computes_once_and_forgets_the_oldest() -> None:
    cache, computed = SizeCache(capacity=2), []

    def make(key: int) -> Tensor:
        computed.append(key)
        return torch.full((1,), float(key))

    for key in (1, 2, 1, 3, 1, 2):
        assert cache.get(key, lambda key=key: make(key)).item() == key
    assert computed == [1, 2, 3, 2]


def test_size_cache_entry_made_in_inference_mode_serves_training() -> None:
    cache = SizeCache()
    with torch.inference_mode():
        cache.get("size", lambda: torch.ones(2))
    weight = torch.ones(2, requires_grad=True)
    (weight * cache.get("size", lambda: torch.zeros(2))).sum().backward()
    assert torch.equal(weight.grad, torch.ones(2))


def test_size_cache_copies_are_empty() -> None:
    cache = SizeCache(capacity=3)
    cache.get("size", lambda: torch.ones(2))
    for copied in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert copied.capacity == 3
        assert copied.get("size", lambda: torch.zeros(2)).sum() == 0
