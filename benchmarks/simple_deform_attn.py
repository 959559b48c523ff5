"""The straightforward CUDA port of multi-scale deformable attention, compiled on demand: what the kernels must beat."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mask2former.ops import build

SOURCE = Path(__file__).with_name("simple_deform_attn.cu")
_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


@functools.cache
def compile_simple() -> ctypes.CDLL:
    """The port for the GPU at hand. Raises BuildError without nvcc."""
    nvcc = build.find_nvcc()
    if nvcc is None:
        raise build.BuildError("nvcc not found (PATH, CUDACXX, CUDA_HOME)")
    target = Path(tempfile.mkdtemp(prefix="simple_deform_attn_")) / "simple.so"
    command = [nvcc, "-O3", "-std=c++17", "-shared", "-arch=native", "-Xcompiler", "-fPIC", str(SOURCE)]
    subprocess.run([*command, "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


def simple_forward(
    library: ctypes.CDLL, value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor, *, stream: int
) -> Tensor:
    """value (B, S, M, D), shapes (L, 2) int64 on the device, locations, weights → (B, Q, M * D)."""
    output = value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
    _call(library, [value, shapes, locations, weights, output, None, None, None, None], stream)
    return output


def simple_backward(
    library: ctypes.CDLL,
    grad_output: Tensor,
    value: Tensor,
    shapes: Tensor,
    locations: Tensor,
    weights: Tensor,
    *,
    stream: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The float32 gradients of value, locations and weights."""
    grads = tuple(torch.zeros_like(tensor, dtype=torch.float32) for tensor in (value, locations, weights))
    _call(library, [value, shapes, locations, weights, None, grad_output, *grads], stream)
    return grads[0], grads[1], grads[2]


def _call(library: ctypes.CDLL, tensors: Sequence[Tensor | None], stream: int) -> None:
    value, locations = tensors[0], tensors[2]
    assert value is not None
    assert locations is not None
    assert all(tensor is None or tensor.is_contiguous() for tensor in tensors)
    pointers = (ctypes.c_void_p * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))
    sizes = (*value.shape, locations.shape[1], *locations.shape[3:5])
    status = library.simple_deform_attn(
        _DTYPES[value.dtype], pointers, (ctypes.c_int64 * 7)(*sizes), ctypes.c_void_p(stream)
    )
    assert status == 0, f"launch failed: cudaError_t {status}"
