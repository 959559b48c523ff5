"""The CUDA kernels' arithmetic and indexing without a GPU: their source compiled for the host."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import pytest
import torch

from mask2former.ops import build, native
from mask2former.ops.deformable_attention import _CUDA_DTYPES
from mask2former.ops.deformable_attention_reference import reference_backward, reference_forward

SHIM = Path(__file__).with_name("cuda_on_host")
SHAPES = (5, 7, 3, 1, 1, 2)


@pytest.fixture(scope="module", params=[800, 900], ids=["scalar atomics", "vector atomics"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("cuda")
    text = (build.SOURCE_DIR / "cuda/ms_deform_attn.cu").read_text()
    launch = r"(\w+<T, VEC>)<<<(.*?), (\w+), 0, a\.stream>>>\((.*?)\);"
    text, count = re.subn(launch, r"host::launch(\2, \3, [&] { \1(\4); });", text, flags=re.DOTALL)
    assert count == 2
    (folder / "kernels.cpp").write_text(text)
    defines = [f"-D__CUDA_ARCH__={request.param}", "-DCUDART_VERSION=13000"]
    try:
        command = [*build.find_cxx(), "-O1", "-std=c++20", "-fPIC", "-shared", "-pthread", f"-I{SHIM}", *defines]
        done = subprocess.run(
            [*command, str(folder / "kernels.cpp"), "-o", str(folder / "kernels.so")],
            capture_output=True,
            text=True,
            check=False,
        )
    except (build.BuildError, OSError) as error:
        pytest.skip(f"needs a C++20 compiler: {error}")
    if done.returncode != 0 and re.search("std=c[+][+]20|barrier|_Float16", done.stderr):
        pytest.skip("needs a C++20 compiler with std::barrier and _Float16")
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(folder / "kernels.so"))
    library.m2f_cuda_ms_deform_attn_forward.argtypes = [*native._FORWARD, ctypes.c_void_p]
    library.m2f_cuda_ms_deform_attn_backward.argtypes = [*native._BACKWARD, ctypes.c_void_p]
    return library


@pytest.mark.parametrize("channels", [3, 32, 40, 160])
@pytest.mark.parametrize("dtype", list(_CUDA_DTYPES))
def test_cuda_source_equals_float64_reference(library: ctypes.CDLL, channels: int, dtype: torch.dtype) -> None:
    batch, tokens, heads, queries, levels, points = 2, 40, 2, 3, 3, 2
    value = torch.randn(batch, tokens, heads, channels).to(dtype)
    locations = torch.rand(batch, queries, heads, levels, points, 2) * 1.6 - 0.3
    weights = torch.rand(batch, queries, heads, levels, points)
    grad_output = torch.randn(batch, queries, heads * channels).to(dtype)
    shapes, sizes = (ctypes.c_int64 * 6)(*SHAPES), (batch, tokens, heads, channels, queries, levels, points)
    inputs = (value.data_ptr(), shapes, locations.data_ptr(), weights.data_ptr())
    output = torch.full_like(grad_output, 9)
    assert library.m2f_cuda_ms_deform_attn_forward(_CUDA_DTYPES[dtype], *inputs, output.data_ptr(), *sizes, None) == 0
    grads = torch.zeros_like(value, dtype=torch.float32), torch.full_like(locations, 9), torch.full_like(weights, 9)
    pointers = [grad.data_ptr() for grad in grads]
    status = library.m2f_cuda_ms_deform_attn_backward(
        _CUDA_DTYPES[dtype], grad_output.data_ptr(), *inputs, *pointers, *sizes, None
    )
    assert status == 0

    exact = (value.double(), SHAPES, locations.double(), weights.double())
    expected = [reference_forward(*exact), *reference_backward(grad_output.double(), *exact)]
    rounding = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}[dtype]
    for found, right, tolerance in zip((output, *grads), expected, (rounding, 2e-6, 2e-6, 2e-6), strict=True):
        assert (found.double() - right).abs().max() <= tolerance * right.abs().max()
