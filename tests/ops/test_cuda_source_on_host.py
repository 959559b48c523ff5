"""The CUDA kernels' arithmetic and indexing without a GPU: their source compiled for the host."""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mask2former.ops import build, native
from mask2former.ops.deformable_attention import _fused_cuda, _fused_cuda_backward, _locations_and_weights
from mask2former.ops.deformable_attention_kernels import CUDA_DTYPES, backward_cuda, forward_cuda
from mask2former.ops.deformable_attention_reference import reference_backward, reference_forward

SHAPES = (5, 7, 3, 1, 1, 2)
ROUNDING = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}


@pytest.fixture(scope="module", params=[800, 900], ids=["scalar atomics", "vector atomics"])
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, compile_cuda_on_host: Callable[..., Any]
) -> ctypes.CDLL:
    source = build.SOURCE_DIR / "cuda/ms_deform_attn.cu"
    target = tmp_path_factory.mktemp("cuda") / "kernels.so"
    library = compile_cuda_on_host(source, target, architecture=request.param)
    library.m2f_cuda_ms_deform_attn_forward.argtypes = native.CUDA_FORWARD
    library.m2f_cuda_ms_deform_attn_backward.argtypes = native.CUDA_BACKWARD
    library.m2f_cuda_error.restype = ctypes.c_char_p
    return library


@pytest.fixture(autouse=True)
def library(compiled: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    monkeypatch.setattr(native, "cuda_library", lambda: compiled)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))
    return compiled


@pytest.fixture
def deterministic() -> object:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def make_value(dtype: torch.dtype, *, shapes=SHAPES, channels=32, batch=2, heads=2, by_head=True) -> Tensor:
    tokens = sum(h * w for h, w in zip(shapes[::2], shapes[1::2], strict=True))
    if by_head:
        return torch.randn(batch, heads, tokens, channels).to(dtype).transpose(1, 2)
    return torch.randn(batch, tokens, heads, channels).to(dtype)


def make_given(*, queries=3, levels=3, points=2, batch=2, heads=2) -> tuple[Tensor, Tensor]:
    locations = torch.rand(batch, queries, heads, levels, points, 2) * 1.6 - 0.3
    return locations, torch.rand(batch, queries, heads, levels, points)


def make_fused(dtype: torch.dtype, *, queries=3, levels=3, points=2) -> tuple[Tensor, Tensor, Tensor]:
    """centres, offsets, logits"""
    offsets = (2 * torch.randn(2, queries, 2, levels, points, 2)).to(dtype)
    return torch.rand(queries, 2), offsets, (3 * torch.randn(2, queries, 2, levels, points)).to(dtype)


def around_in_float64(grad_output: Tensor, value: Tensor, shapes: tuple, around: tuple) -> list[Tensor]:
    """Output, and gradients of value, offsets and logits."""
    centres, *leaves = (tensor.double() for tensor in around)
    leaves = [tensor.requires_grad_() for tensor in leaves]
    pairs = list(zip(shapes[::2], shapes[1::2], strict=True))
    locations, weights = _locations_and_weights(pairs, centres, *leaves)
    exact = (value.double(), shapes, locations.detach(), weights.detach())
    grad_value, *grads = reference_backward(grad_output.double(), *exact)
    return [
        reference_forward(*exact),
        grad_value,
        *torch.autograd.grad([locations, weights], leaves, grads),
    ]


def assert_close(found: list[Tensor], expected: list[Tensor], tolerances: list[float]) -> None:
    for tensor, right, tolerance in zip(found, expected, tolerances, strict=True):
        assert tensor.shape == right.shape
        assert (tensor.double() - right).abs().max() <= tolerance * right.abs().max()


@pytest.mark.parametrize("by_head", [False, True], ids=["by token", "by head"])
@pytest.mark.parametrize("channels", [3, 32, 160])
@pytest.mark.parametrize("dtype", list(CUDA_DTYPES))
def test_cuda_source_equals_float64_reference(dtype: torch.dtype, channels: int, by_head: bool) -> None:
    value, given = make_value(dtype, channels=channels, by_head=by_head), make_given()
    grad_output = torch.randn(2, 3, 2 * channels).to(dtype)
    found = [forward_cuda(value, SHAPES, *given), *backward_cuda(grad_output, value, SHAPES, *given)]
    exact = (value.double(), SHAPES, given[0].double(), given[1].double())
    expected = [reference_forward(*exact), *reference_backward(grad_output.double(), *exact)]
    assert_close(found, expected, [ROUNDING[dtype], ROUNDING[dtype], 2e-6, 2e-6])
    assert [tensor.dtype for tensor in found] == [dtype, dtype, torch.float32, torch.float32]


@pytest.mark.parametrize("channels", [3, 32, 160])
@pytest.mark.parametrize("dtype", list(CUDA_DTYPES))
def test_cuda_source_fused_equals_float64_reference(dtype: torch.dtype, channels: int) -> None:
    value, around = make_value(dtype, channels=channels), make_fused(dtype)
    grad_output = torch.randn(2, 3, 2 * channels).to(dtype)
    found = [_fused_cuda(value, SHAPES, *around), *_fused_cuda_backward(grad_output, value, SHAPES, *around)]
    assert_close(found, around_in_float64(grad_output, value, SHAPES, around), [ROUNDING[dtype]] * 4)
    assert {tensor.dtype for tensor in found} == {dtype}


@pytest.mark.parametrize(("levels", "points", "channels"), [(32, 1, 8), (1, 37, 20), (7, 11, 1)])
def test_cuda_source_takes_any_number_of_levels_and_points(levels: int, points: int, channels: int) -> None:
    shapes = tuple(1 + i % 4 for i in range(2 * levels))
    value = make_value(torch.float32, shapes=shapes, channels=channels)
    around = make_fused(torch.float32, levels=levels, points=points)
    grad_output = torch.randn(2, 3, 2 * channels)
    found = [_fused_cuda(value, shapes, *around), *_fused_cuda_backward(grad_output, value, shapes, *around)]
    assert_close(found, around_in_float64(grad_output, value, shapes, around), [3e-6] * 4)


def test_cuda_source_leaves_more_levels_to_the_reference() -> None:
    shapes = (1, 1) * 33
    around = make_fused(torch.float32, levels=33)
    value = make_value(torch.float32, shapes=shapes)
    assert forward_cuda(value, shapes, *make_given(levels=33)) is None
    grad_output = torch.randn(2, 3, 64)
    found = [_fused_cuda(value, shapes, *around), *_fused_cuda_backward(grad_output, value, shapes, *around)]
    assert_close(found, around_in_float64(grad_output, value, shapes, around), [3e-6] * 4)


def test_cuda_source_ignores_points_outside() -> None:
    value, (locations, weights) = make_value(torch.float32), make_given()
    far = torch.tensor([-1e30, -7.0, -0.6, 2.5, 1e6, 1e30])
    locations[..., 0] = far[torch.arange(locations[..., 0].numel()) % len(far)].view_as(locations[..., 0])
    output = forward_cuda(value, SHAPES, locations, weights)
    grads = backward_cuda(torch.ones_like(output), value, SHAPES, locations, weights)
    assert all((tensor == 0).all() for tensor in (output, *grads))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_cuda_source_passes_on_what_is_not_finite(bad: float) -> None:
    value, (centres, offsets, logits) = make_value(torch.float32), make_fused(torch.float32)
    expected = _fused_cuda(value, SHAPES, centres, offsets, logits)
    is_hit = torch.zeros(2, 3, 64, dtype=torch.bool)
    is_hit[1, 2, 32:] = True  # the second head of that query, and nothing else
    offsets[1, 2, 1, 2, 0, 0] = bad
    output = _fused_cuda(value, SHAPES, centres, offsets, logits)
    grads = _fused_cuda_backward(torch.ones_like(output), value, SHAPES, centres, offsets, logits)
    assert output[is_hit].isnan().all()
    assert torch.equal(output[~is_hit], expected[~is_hit])
    assert grads[1][1, 2, 1, 2, 0].isnan().all()
    assert grads[2][1, 2, 1].isnan().all()
    assert [int(grad.isnan().sum()) for grad in grads] == [0, 2, 6]
    output = _fused_cuda(value, SHAPES, centres, offsets.zero_(), logits.index_fill_(-1, torch.tensor(0), -math.inf))
    assert output.isfinite().all()  # -inf is a weight of zero


@pytest.mark.parametrize("dtype", list(CUDA_DTYPES))
def test_cuda_source_is_deterministic_where_asked(dtype: torch.dtype, deterministic: None) -> None:
    value, around = make_value(dtype), make_fused(dtype, queries=29)
    grad_output = torch.randn(2, 29, 64).to(dtype) * 1e-4
    grads = _fused_cuda_backward(grad_output, value, SHAPES, *around)
    assert_close(list(grads), around_in_float64(grad_output, value, SHAPES, around)[1:], [ROUNDING[dtype]] * 3)
    order = torch.randperm(29)  # the atomics add in another order
    centres, offsets, logits = around
    again = _fused_cuda_backward(
        grad_output[:, order], value, SHAPES, centres[order], offsets[:, order], logits[:, order]
    )
    assert torch.equal(grads[0], again[0])


def test_cuda_source_is_deterministic_with_any_weights(deterministic: None) -> None:
    value, (locations, weights) = make_value(torch.float32), make_given(queries=29)
    grad_output, weights = torch.randn(2, 29, 64) * 1e20, weights * -1e3
    grad_value = backward_cuda(grad_output, value, SHAPES, locations, weights)[0]
    exact = (value.double(), SHAPES, locations.double(), weights.double())
    assert_close([grad_value], [reference_backward(grad_output.double(), *exact)[0]], [2e-7])


def test_cuda_source_deterministic_gradients_show_what_is_not_finite(deterministic: None) -> None:
    value, (centres, offsets, logits) = make_value(torch.float32), make_fused(torch.float32)
    grad_output = torch.zeros(2, 3, 64)
    assert (_fused_cuda_backward(grad_output, value, SHAPES, centres, offsets, logits)[0] == 0).all()
    assert backward_cuda(grad_output / 0, value, SHAPES, *make_given())[0].isnan().all()
    logits[0, 1, 1, 2, 1] = math.nan
    assert _fused_cuda_backward(grad_output + 1, value, SHAPES, centres, offsets, logits)[0].isnan().all()


@pytest.mark.parametrize("case", [{"queries": 0}, {"points": 0}, {"batch": 0}], ids=str)
def test_cuda_source_takes_nothing(case: dict) -> None:
    value = make_value(torch.bfloat16, batch=case.get("batch", 2))
    locations, weights = make_given(**case)
    output = forward_cuda(value, SHAPES, locations, weights)
    grads = backward_cuda(torch.ones_like(output), value, SHAPES, locations, weights)
    assert [grad.shape for grad in grads] == [value.shape, locations.shape, weights.shape]
    assert all((tensor == 0).all() for tensor in (output, *grads))
