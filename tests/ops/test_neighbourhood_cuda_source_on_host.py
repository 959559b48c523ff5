"""The arithmetic and indexing of neighbourhood attention's CUDA kernels without a GPU: compiled for the host."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mask2former.ops import build, native
from mask2former.ops.deformable_attention_kernels import CUDA_DTYPES
from mask2former.ops.neighbourhood_attention_kernels import backward_cuda, forward_cuda
from mask2former.ops.neighbourhood_attention_reference import reference_backward, reference_forward

ROUNDING = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory, compile_cuda_on_host: Callable[..., Any]) -> ctypes.CDLL:
    source = build.SOURCE_DIR / "cuda/neighbourhood_attention.cu"
    library = compile_cuda_on_host(source, tmp_path_factory.mktemp("cuda") / "kernels.so")
    library.m2f_cuda_neighbourhood_forward.argtypes = native.CUDA_NEIGHBOURHOOD_FORWARD
    library.m2f_cuda_neighbourhood_backward.argtypes = native.CUDA_NEIGHBOURHOOD_BACKWARD
    return library


@pytest.fixture(autouse=True)
def library(compiled: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    monkeypatch.setattr(native, "cuda_library", lambda: compiled)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))
    return compiled


def make_inputs(
    size: tuple[int, int], keys: tuple[int, int], *, channels: int, kernel_size: int, dtype: torch.dtype
) -> list[Tensor]:
    """query, key, value and bias, the maps with gaps as parts of one layer's output have them"""
    together = torch.randn(1, *keys, 3, 2, channels).to(dtype)
    query, key, value = together.unbind(3)
    return [query[:, : size[0], : size[1]], key, value, torch.randn(2, 2 * kernel_size - 1, 2 * kernel_size - 1)]


@pytest.mark.parametrize("channels", [3, 32])
@pytest.mark.parametrize("dtype", list(CUDA_DTYPES))
@pytest.mark.parametrize(
    ("size", "keys", "kernel_size", "dilation"),
    [((5, 7), (5, 7), 3, 1), ((3, 5), (6, 7), 3, 2), ((11, 2), (13, 11), 5, 2)],
    ids=str,
)
def test_cuda_source_equals_float64_reference(
    size: tuple[int, int], keys: tuple[int, int], kernel_size: int, dilation: int, dtype: torch.dtype, channels: int
) -> None:
    inputs = make_inputs(size, keys, channels=channels, kernel_size=kernel_size, dtype=dtype)
    grad_output = torch.randn(inputs[0].shape).to(dtype)
    options = kernel_size, dilation, 0.4
    found = [forward_cuda(*inputs, *options), *backward_cuda(grad_output, *inputs, *options)]
    exact = [tensor.double() for tensor in inputs]
    expected = [reference_forward(*exact, *options), *reference_backward(grad_output.double(), *exact, *options)]
    for tensor, right in zip(found, expected, strict=True):
        assert tensor.shape == right.shape
        assert (tensor.double() - right).abs().max() <= ROUNDING[dtype] * right.abs().max()
    assert [tensor.dtype for tensor in found] == [*[dtype] * 4, torch.float32]


def test_cuda_source_leaves_wide_heads_and_deterministic_gradients_to_the_reference() -> None:
    inputs = make_inputs((3, 3), (3, 3), channels=33, kernel_size=3, dtype=torch.float32)
    assert forward_cuda(*inputs, 3, 1, 1.0) is None
    inputs = make_inputs((3, 3), (3, 3), channels=4, kernel_size=3, dtype=torch.float32)
    torch.use_deterministic_algorithms(True)
    try:
        assert backward_cuda(inputs[0], *inputs, 3, 1, 1.0) is None
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("shape", [(0, 3, 3, 2, 4), (1, 3, 3, 0, 4)], ids=str)
def test_cuda_source_takes_nothing(shape: tuple[int, ...]) -> None:
    inputs = [torch.zeros(shape)] * 3 + [torch.zeros(shape[3], 5, 5)]
    assert forward_cuda(*inputs, 3, 1, 1.0).shape == shape
    grads = backward_cuda(inputs[0], *inputs, 3, 1, 1.0)
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in inputs]
