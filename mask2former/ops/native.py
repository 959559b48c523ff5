"""Load the compiled kernel libraries (plain C interface, see csrc/) and tell which are used."""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

logger = logging.getLogger(__name__)

LIBRARY_DIR = Path(__file__).with_name("lib")
CPU_LIBRARY = "libm2f_ops_cpu.so"
CUDA_LIBRARY = "libm2f_ops_cuda.so"
BUILD_COMMAND = "python -m mask2former.ops.build"

# kAbiVersion in csrc, raised with every change of a function or its arguments.
_CPU_ABI_VERSION, _CUDA_ABI_VERSION = 9, 3
# DType in csrc/cpu/problem.h, and those that passes over maps and attention take.
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
MAP_DTYPES = {dtype: DTYPES[dtype] for dtype in (torch.float32, torch.bfloat16)}

_Types: TypeAlias = "list[type[ctypes._SimpleCData[Any]]]"
_POINTER, _INT64, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_SIZES = [_INT64] * 7  # B, S, M, D, Q, L, P
# dtype, tensors and shapes, sizes; then what the library adds.
_FORWARD = [_INT] + [_POINTER] * 5 + _SIZES
_BACKWARD = [_INT] + [_POINTER] * 8 + _SIZES
# dtype; tensors, shapes, sizes and the stream.
CUDA_FORWARD = [_INT] + [_POINTER] * 8
CUDA_BACKWARD = [_INT] + [_POINTER] * 12

_PLACE: _Types = [_INT64] * 5  # height, width, channels, first tile, number of tiles
_WINOGRAD_TILES: _Types = [_INT, _POINTER, _POINTER, _INT64, *_PLACE]
_WINOGRAD_OUTPUT: _Types = [_POINTER, _INT64, _POINTER, _POINTER, _INT, _POINTER, *_PLACE]

_MOMENTS: _Types = [_INT, _POINTER, _POINTER, *[_INT64] * 4]  # dtype, map and result, then N, P, C, groups
_AFFINE: _Types = [_INT, _POINTER, _POINTER, _POINTER, _INT, *[_INT64] * 3]
_ADD_RESIZED: _Types = [_INT, _POINTER, _POINTER, *[_INT64] * 6]
_ADD_NORM: _Types = [_INT, *[_POINTER] * 4, ctypes.c_float, *[_INT64] * 4]  # then B, rows, C, stride
_TAPS: _Types = [_POINTER, _POINTER, _INT64]  # first places, weights, how many weights a place has
_MASK_STRIP: _Types = [_POINTER, *[_INT64] * 3, *_TAPS, *_TAPS, *[_INT64] * 3, ctypes.c_float, *[_POINTER] * 3]
_WINNERS: _Types = [_POINTER, _POINTER, _INT64, _INT64, ctypes.c_float, _POINTER, _POINTER]
_ATTENTION: _Types = [_INT, *[_POINTER] * 5, ctypes.c_float, *[_INT64] * 5]  # then B, M, D, Q, S
# dtype; query, key, value, bias and output, or grad_output, those four and their gradients; sizes, scale.
_NEIGHBOURHOOD_FORWARD: _Types = [_INT, *[_POINTER] * 5, _POINTER, ctypes.c_double]
_NEIGHBOURHOOD_BACKWARD: _Types = [_INT, *[_POINTER] * 9, _POINTER, ctypes.c_double]
CUDA_NEIGHBOURHOOD_FORWARD: _Types = [*_NEIGHBOURHOOD_FORWARD, _POINTER]  # the stream
CUDA_NEIGHBOURHOOD_BACKWARD: _Types = [_INT, *[_POINTER] * 10, _POINTER, ctypes.c_double, _POINTER]
_UNCERTAIN_POINTS: _Types = [_POINTER, *[_INT64] * 3, _POINTER, _INT64, _INT64, _POINTER]
_PNG_IDS: _Types = [_POINTER, _INT64, _INT64, _POINTER]
_JOINT_HISTOGRAM: _Types = [_POINTER, _POINTER, _INT64, _POINTER, _INT64, _POINTER, _INT64, _POINTER]


def cpu_library() -> ctypes.CDLL | None:
    """Return the CPU library, or None if it is missing or unusable; the first such call logs why."""
    library, problem = _load_cpu_library()
    if library is None:
        _warn_once("CPU", problem)
    return library


def cuda_library() -> ctypes.CDLL | None:
    """Return the CUDA library, or None if it is missing or unusable; the first such call logs why.

    Call it with the device to be used as the current one.
    """
    library, problem = _load_cuda_library()
    if library is None:
        _warn_once("CUDA", problem)
    return library


def is_eager_cpu(x: Tensor) -> bool:
    """Return whether ``x`` is on the CPU and not being traced, compiled or exported."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(x):  # by vmap: a batch that has no memory of its own
        return False
    return x.device.type == "cpu" and type(x) is Tensor and not is_in_torch_dispatch_mode()


def is_eager_cpu_inference(x: Tensor) -> bool:
    """Return whether ``is_eager_cpu`` holds and no gradient can be wanted."""
    return not torch.is_grad_enabled() and is_eager_cpu(x)


def check_tensor(name: str, tensor: Tensor, shape: Sequence[int], *, dtype: torch.dtype | None = None) -> None:
    """Raise ValueError unless a kernel's argument has this shape, is on the CPU, and is floating or of this dtype."""
    is_typed = tensor.is_floating_point() if dtype is None else tensor.dtype == dtype
    if tuple(tensor.shape) != tuple(shape) or not tensor.is_cpu or not is_typed:
        found = f"{tuple(tensor.shape)} of {tensor.dtype} on {tensor.device}"
        raise ValueError(f"{name} must be {tuple(shape)} of {dtype or 'floating point'} on the CPU, got {found}")


def check_status(status: int) -> None:
    """Raise MemoryError if a function of the CPU library reports that it could not allocate working space."""
    if status:
        raise MemoryError("not enough memory for the kernel's working space")


def kernel_status() -> str:
    """Return one line that says which implementation of the native operators is used on each kind of device."""
    library, problem = _load_cpu_library()
    if library is None:
        status = f"CPU: PyTorch reference ({problem}; build the kernels with: {BUILD_COMMAND})"
    else:
        status = f"CPU: C++ ({library.m2f_instruction_set().decode()}, {library.m2f_threading().decode()})"
    if torch.cuda.is_available():
        library, problem = _load_cuda_library()
        found = f"PyTorch reference ({problem}; build the kernels with: {BUILD_COMMAND})" if library is None else "CUDA"
    else:
        found = "no device"
    return f"ms_deform_attn: {status}; CUDA: {found}"


@functools.cache
def _warn_once(kind: str, problem: str) -> None:
    logger.warning(
        "%s kernels not in use, the slower PyTorch reference is: %s; build them with: %s", kind, problem, BUILD_COMMAND
    )


@functools.cache
def _load_cpu_library() -> tuple[ctypes.CDLL | None, str]:
    library, problem = _open_library(LIBRARY_DIR / CPU_LIBRARY, _CPU_ABI_VERSION)
    if library is None:
        return None, problem
    library.m2f_ms_deform_attn_forward.argtypes = [*_FORWARD, _POINTER, _INT]  # centres, number of threads
    library.m2f_ms_deform_attn_backward.argtypes = [*_BACKWARD, _INT]
    library.m2f_winograd_tiles.argtypes = [*_WINOGRAD_TILES, _INT]
    library.m2f_winograd_output.argtypes = [*_WINOGRAD_OUTPUT, _INT]
    library.m2f_map_moment_pixels.restype = _INT64
    library.m2f_map_moments.argtypes = [*_MOMENTS, _INT]
    library.m2f_map_affine.argtypes = [*_AFFINE, _INT]
    library.m2f_map_add_resized.argtypes = [*_ADD_RESIZED, _INT]
    library.m2f_add_norm.argtypes = [*_ADD_NORM, _INT]
    library.m2f_mask_strip.argtypes = [*_MASK_STRIP, _INT]
    library.m2f_winner_pixels.restype = _INT64
    library.m2f_winners.argtypes = [*_WINNERS, _INT]
    library.m2f_attention.argtypes = [*_ATTENTION, _INT]
    library.m2f_neighbourhood_forward.argtypes = [*_NEIGHBOURHOOD_FORWARD, _INT]
    library.m2f_neighbourhood_backward.argtypes = [*_NEIGHBOURHOOD_BACKWARD, _INT]
    library.m2f_uncertain_points.argtypes = [*_UNCERTAIN_POINTS, _INT]
    library.m2f_png_ids.argtypes = _PNG_IDS
    library.m2f_joint_histogram.argtypes = _JOINT_HISTOGRAM
    library.m2f_use_gomp_parallel.argtypes = [_POINTER]
    for text in (library.m2f_instruction_set, library.m2f_limit_instruction_set, library.m2f_threading):
        text.restype = ctypes.c_char_p
    library.m2f_use_gomp_parallel(_torch_gomp_parallel())
    return library, ""


@functools.cache
def _load_cuda_library() -> tuple[ctypes.CDLL | None, str]:
    library, problem = _open_library(LIBRARY_DIR / CUDA_LIBRARY, _CUDA_ABI_VERSION)
    if library is None:
        return None, problem
    library.m2f_cuda_ms_deform_attn_forward.argtypes = CUDA_FORWARD
    library.m2f_cuda_ms_deform_attn_backward.argtypes = CUDA_BACKWARD
    library.m2f_cuda_neighbourhood_forward.argtypes = CUDA_NEIGHBOURHOOD_FORWARD
    library.m2f_cuda_neighbourhood_backward.argtypes = CUDA_NEIGHBOURHOOD_BACKWARD
    library.m2f_cuda_error.argtypes = [_INT]
    library.m2f_cuda_error.restype = ctypes.c_char_p
    if status := library.m2f_cuda_probe():
        return None, f"{CUDA_LIBRARY} does not run here: {library.m2f_cuda_error(status).decode()}"
    return library, ""


def _open_library(path: Path, expected: int) -> tuple[ctypes.CDLL | None, str]:
    if not path.is_file():
        return None, f"{path.name} is not built"
    try:
        library = ctypes.CDLL(str(path))
        version = library.m2f_abi_version()
    except (OSError, AttributeError) as error:
        return None, f"{path.name} cannot be loaded: {error}"
    if version != expected:
        return None, f"{path.name} is of another version ({version}, expected {expected})"
    return library, ""


def _torch_gomp_parallel() -> int | None:
    """Return the address of GOMP_parallel in the OpenMP runtime that torch uses (GNU, Intel and LLVM on Linux have it).

    Running on torch's own threads keeps a second runtime, whose idle threads would spin against torch's, out of the
    process. Opening the library again only returns the one in use; the symbol is looked up in it and what it links.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        return ctypes.cast(ctypes.CDLL(str(library)).GOMP_parallel, _POINTER).value
    except (OSError, AttributeError):
        return None
