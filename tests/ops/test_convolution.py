"""The 3x3 convolution by Winograd's filtering: its values, its error, and where it leaves the work to torch."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mask2former.ops import (
    WinogradWeight,
    conv3x3,
    convolution,
    is_trained_winograd_faster,
    is_winograd_faster,
    native,
    trained_conv3x3,
)

# Of the largest output; torch's own convolution of channels_last maps loses up to 2e-6.
TOLERANCE = 5e-6


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small maps too take the fast way, in several strips."""
    monkeypatch.setattr(convolution, "_MIN_CHANNELS", 1)
    monkeypatch.setattr(convolution, "_MIN_TILES", 0)
    monkeypatch.setattr(convolution, "_STRIP_TILES", 7)


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def make_inputs(size: tuple[int, int, int, int] = (1, 64, 29, 34), *, out_channels: int = 64) -> tuple[Tensor, Tensor]:
    """A map as it leaves a ReLU, and weights that keep its magnitude."""
    x = torch.randn(size).relu().contiguous(memory_format=torch.channels_last)
    return x, torch.randn(out_channels, size[1], 3, 3) * (2 / (9 * size[1])) ** 0.5


def expected_of(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x.double(), weight.double(), padding=1)


def error_of(found: Tensor, expected: Tensor) -> float:
    """Of the largest output."""
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-3)).item()


@pytest.mark.usefixtures("instruction_set", "any_size")
@pytest.mark.parametrize(
    "size", [(1, 16, 1, 1), (1, 16, 3, 2), (1, 16, 4, 4), (2, 32, 5, 9), (1, 48, 1, 23), (3, 16, 17, 6), (1, 64, 12, 8)]
)
@pytest.mark.parametrize("out_channels", [16, 80])
def test_conv3x3_equals_direct_convolution(size: tuple[int, int, int, int], out_channels: int) -> None:
    x, weight = make_inputs(size, out_channels=out_channels)
    scale, shift = torch.rand(out_channels) + 0.5, torch.randn(out_channels)
    assert is_winograd_faster(x, weight)
    assert error_of(conv3x3(x, weight), expected_of(x, weight)) <= TOLERANCE
    expected = expected_of(x, weight) * scale[:, None, None] + shift[:, None, None]
    assert error_of(conv3x3(x, weight, scale=scale, shift=shift), expected) <= TOLERANCE
    assert error_of(conv3x3(x, weight, scale=scale, shift=shift, relu=True), expected.relu()) <= TOLERANCE


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(st.integers(1, 3), st.sampled_from([16, 32, 48]), st.integers(1, 20), st.integers(1, 20)),
    out_channels=st.sampled_from([16, 64]),
    threads=st.integers(1, 2),
    strip=st.integers(1, 40),
)
def test_conv3x3_equals_direct_convolution_at_any_size(
    any_size: None, monkeypatch: pytest.MonkeyPatch, size, out_channels: int, threads: int, strip: int
) -> None:
    monkeypatch.setattr(convolution, "_STRIP_TILES", strip)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x, weight = make_inputs(size, out_channels=out_channels)
    assert error_of(conv3x3(x, weight), expected_of(x, weight)) <= TOLERANCE


@pytest.mark.usefixtures("cpu_library")
@pytest.mark.parametrize("channels", [64, 256, 512])
def test_conv3x3_error_is_bounded(channels: int) -> None:
    x, weight = make_inputs((1, channels, 29, 34), out_channels=channels)
    expected = expected_of(x, weight)
    assert is_winograd_faster(x, weight)
    assert error_of(conv3x3(x, weight), expected) <= TOLERANCE
    root_mean_square = (conv3x3(x, weight) - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert root_mean_square <= 2e-6


def gradient_errors(x: Tensor, weight: Tensor) -> list[float]:
    """Of x and weight, against float64, of the largest gradient."""
    grad = torch.randn(len(x), len(weight), *x.shape[2:])
    with torch.enable_grad():
        inputs = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        exact = [tensor.double() for tensor in inputs]
        found = torch.autograd.grad(trained_conv3x3(*inputs), inputs, grad)
        expected = torch.autograd.grad(F.conv2d(*exact, padding=1), inputs, grad.double())
    return [
        ((one - other).abs().max() / other.abs().max().clamp(min=1e-3)).item()
        for one, other in zip(found, expected, strict=True)
    ]


@pytest.mark.usefixtures("instruction_set", "any_size")
@pytest.mark.parametrize("size", [(1, 16, 1, 1), (1, 16, 3, 2), (2, 32, 5, 9), (3, 16, 17, 6), (1, 64, 12, 8)])
@pytest.mark.parametrize("out_channels", [16, 80])
def test_gradients_equal_those_of_direct_convolution(size: tuple[int, int, int, int], out_channels: int) -> None:
    assert max(gradient_errors(*make_inputs(size, out_channels=out_channels))) <= TOLERANCE


@pytest.mark.usefixtures("cpu_library")
@pytest.mark.parametrize("channels", [64, 256])
def test_gradient_error_is_bounded_where_many_tiles_are_summed(channels: int) -> None:
    x, weight = make_inputs((2, channels, 93, 90), out_channels=channels)
    with torch.enable_grad():
        assert is_trained_winograd_faster(x, weight)
    assert max(gradient_errors(x, weight)) <= TOLERANCE


@pytest.mark.usefixtures("cpu_library")
@pytest.mark.parametrize(
    ("channels", "height", "expected"),
    [
        (64, 128, True),
        (64, 64, False),
        (128, 64, True),
        (128, 32, False),
        (256, 32, True),
        (512, 32, False),
        (16, 256, False),
    ],
)
def test_training_takes_the_fast_way_where_tiles_are_many(channels: int, height: int, expected: bool) -> None:
    x, weight = make_inputs((2, channels, height, height), out_channels=channels)
    assert not is_trained_winograd_faster(x, weight)  # without gradients
    with torch.enable_grad():
        assert is_trained_winograd_faster(x, weight) == expected


@pytest.mark.usefixtures("cpu_library", "any_size")
@torch.enable_grad()
def test_gradients_do_not_depend_on_which_are_wanted_or_on_layouts() -> None:
    x, weight = make_inputs((2, 16, 9, 10), out_channels=32)
    grad, layouts = torch.randn(2, 32, 9, 10), (torch.contiguous_format, torch.channels_last)
    tensors = x.requires_grad_(), weight.requires_grad_()
    expected = torch.autograd.grad(trained_conv3x3(x, weight), tensors, grad)
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved.detach().contiguous(), lambda saved: saved):
        brought_back = trained_conv3x3(x, weight)
    assert all(map(torch.equal, torch.autograd.grad(brought_back, tensors, grad), expected))
    for layout in layouts:
        other = weight.detach().clone(memory_format=layout).requires_grad_()
        (found,) = torch.autograd.grad(trained_conv3x3(x.detach(), other), other, grad.to(memory_format=layout))
        assert torch.equal(found, expected[1])
        assert found.stride() == other.stride()
    (found,) = torch.autograd.grad(trained_conv3x3(x, weight.detach()), x, grad)
    assert torch.equal(found, expected[0])
    constant = torch.ones(()).expand_as(grad)
    plain = torch.autograd.grad(F.conv2d(x, weight, padding=1), tensors, constant)
    for one, other in zip(torch.autograd.grad(trained_conv3x3(x, weight).sum(), tensors), plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("cpu_library")
def test_conv3x3_writes_nothing_into_its_input() -> None:
    x, weight = make_inputs()
    before = x.clone(), weight.clone()
    conv3x3(x, weight, relu=True)
    assert torch.equal(x, before[0])
    assert torch.equal(weight, before[1])


@pytest.mark.usefixtures("instruction_set")
def test_conv3x3_keeps_nan_where_it_is() -> None:
    x, weight = make_inputs()
    x[0, 3, 8, 8] = torch.nan
    found = conv3x3(x, weight, relu=True)
    assert found[0, :, 7:10, 7:10].isnan().all()
    assert found[0, :, 20:, 20:].isfinite().all()


def test_conv3x3_without_library_is_the_direct_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "cpu_library", lambda: None)
    x, weight = make_inputs()
    scale, shift = torch.rand(64), torch.randn(64)
    found = conv3x3(x, weight, scale=scale, shift=shift, relu=True)
    expected = F.conv2d(x, weight * scale[:, None, None, None], shift, padding=1).relu()
    assert torch.equal(found, expected)


@pytest.mark.usefixtures("cpu_library")
def test_is_winograd_faster_only_where_it_may_serve() -> None:
    x, weight = make_inputs()
    assert is_winograd_faster(x, weight)
    assert not is_winograd_faster(x.contiguous(), weight)
    assert not is_winograd_faster(x.double(), weight.double())
    assert not is_winograd_faster(x.bfloat16(), weight.bfloat16())
    assert not is_winograd_faster(x[:, :, :8, :8].contiguous(memory_format=torch.channels_last), weight)
    assert not is_winograd_faster(*make_inputs((1, 64, 29, 34), out_channels=65))
    assert not is_winograd_faster(x[:0], weight)
    assert not is_winograd_faster(x.to("meta"), weight.to("meta"))
    with torch.enable_grad():
        assert not is_winograd_faster(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_winograd_faster(x, weight)


@pytest.mark.usefixtures("cpu_library")
def test_conv3x3_is_a_convolution_to_whoever_looks_at_the_operators() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    x, weight = make_inputs()
    with FlopCounterMode(display=False) as counter:
        conv3x3(x, weight)
    assert counter.get_total_flops() == 2 * 9 * 64 * 64 * 29 * 34
    traced = torch.jit.trace(lambda image: conv3x3(image, weight), x)
    assert "conv" in str(traced.graph)


@pytest.mark.usefixtures("cpu_library")
@pytest.mark.parametrize("change", [lambda w: w.mul_(2), lambda w: w.data.mul_(2), lambda w: w.numpy().__imul__(2)])
def test_winograd_weight_notices_changes_in_place(change) -> None:
    kept = WinogradWeight()
    x, weight = make_inputs()
    before = conv3x3(x, weight, kept=kept)
    assert kept.get(weight) is kept.get(weight)
    change(weight)
    torch.testing.assert_close(conv3x3(x, weight, kept=kept), 2 * before)


def test_winograd_weight_of_another_shape_or_memory_format() -> None:
    kept = WinogradWeight()
    for weight in (torch.randn(16, 32, 3, 3), torch.randn(32, 16, 3, 3)):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            found = kept.get(weight.contiguous(memory_format=memory_format))
            torch.testing.assert_close(found, convolution.transform_weight(weight))


def test_winograd_weight_is_not_copied() -> None:
    kept = WinogradWeight()
    kept.get(torch.randn(16, 16, 3, 3))
    assert len(pickle.dumps(kept)) < 200
    assert copy.deepcopy(kept)._entry is None


def test_winograd_weight_made_in_inference_mode_serves_outside() -> None:
    kept = WinogradWeight()
    with torch.inference_mode():
        weight = torch.randn(16, 16, 3, 3)
        transformed = kept.get(weight)
    assert not transformed.is_inference()
    assert kept.get(weight) is transformed
