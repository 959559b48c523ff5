"""Multi-scale deformable attention by the C++ and CUDA kernels; None where they are not built or cannot serve.

The CUDA kernels take float32, float16 and bfloat16, any number of heads, channels and points, and up to 32 levels. All
run on the current stream; nothing waits for the device or copies from it, so that a CUDA graph can hold them.
Letters: B batch, S tokens of all levels, M heads, D channels of a head, Q queries, L levels, P points.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mask2former.ops import native
from mask2former.ops.deformable_attention_reference import output_shape

CUDA_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # DType in csrc/cuda/problem.cuh
_MAX_LEVELS = 32  # kMaxLevels there
_MAX_TOKENS = 2**30  # the kernels' pixel indices are 32-bit
_FIXED_POINT_BITS = 62  # of int64, but for the sign and one to spare


def serves_cpu(value: Tensor) -> bool:
    """Return whether the CPU kernels support this value."""
    return _cpu_library_for(value) is not None


def forward_cpu(
    value: Tensor,
    spatial_shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    *,
    centres: Tensor | None = None,
) -> Tensor | None:
    """Return (B, Q, M * D).

    With ``centres``, locations are offsets from them in pixels and weights are logits, all of one dtype.
    """
    library = _cpu_library_for(value)
    if library is None:
        return None
    value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
    output = value.new_empty(output_shape(value, locations))
    if _is_empty(output, locations):
        return output.zero_()
    status = library.m2f_ms_deform_attn_forward(
        native.DTYPES[value.dtype],
        value.data_ptr(),
        _shape_array(spatial_shapes),
        locations.data_ptr(),
        weights.data_ptr(),
        output.data_ptr(),
        *_sizes_of(value, locations),
        None if centres is None else centres.data_ptr(),
        torch.get_num_threads(),
    )
    native.check_status(status)
    return output


def backward_cpu(
    grad_output: Tensor, value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return the gradients of value, locations and weights."""
    library = _cpu_library_for(value)
    if library is None:
        return None
    value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
    grad_output = grad_output.contiguous()
    grads = torch.empty_like(value), torch.empty_like(locations), torch.empty_like(weights)
    if _is_empty(grad_output, locations):
        return grads[0].zero_(), grads[1].zero_(), grads[2].zero_()
    status = library.m2f_ms_deform_attn_backward(
        native.DTYPES[value.dtype],
        grad_output.data_ptr(),
        value.data_ptr(),
        _shape_array(spatial_shapes),
        locations.data_ptr(),
        weights.data_ptr(),
        *(grad.data_ptr() for grad in grads),
        *_sizes_of(value, locations),
        torch.get_num_threads(),
    )
    native.check_status(status)
    return grads


def _cpu_library_for(value: Tensor) -> ctypes.CDLL | None:
    return native.cpu_library() if value.dtype in native.DTYPES and value.shape[1] <= _MAX_TOKENS else None


def forward_cuda(
    value: Tensor,
    spatial_shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    *,
    centres: Tensor | None = None,
) -> Tensor | None:
    """Return (B, Q, M * D).

    With ``centres``, locations are offsets from them in pixels and weights are logits, all of one dtype. Fastest for a
    value whose memory is head by head: (B, M, S, D), transposed.
    """
    with torch.cuda.device(value.device):
        library = _cuda_library_for(value, spatial_shapes)
        if library is None:
            return None
        value, locations, weights = _dense(value), locations.contiguous(), weights.contiguous()
        output = value.new_empty(output_shape(value, locations))
        if _is_empty(output, locations):
            return output.zero_()
        status = library.m2f_cuda_ms_deform_attn_forward(
            CUDA_DTYPES[value.dtype],
            value.data_ptr(),
            _shape_array(spatial_shapes),
            locations.data_ptr(),
            weights.data_ptr(),
            _pointer(centres),
            output.data_ptr(),
            _size_array(value, locations),
            torch.cuda.current_stream().cuda_stream,
        )
        _raise_error(library, status)
        return output


def backward_cuda(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    *,
    centres: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return the gradients of value, locations and weights, or of offsets and logits.

    Under ``torch.use_deterministic_algorithms(True)`` the gradient of the value is summed in 64-bit fixed point, whose
    sum does not depend on the order: slower, with twice the memory, and NaN everywhere if any input to it is not
    finite.
    """
    with torch.cuda.device(value.device):
        library = _cuda_library_for(value, spatial_shapes)
        if library is None:
            return None
        value, locations, weights = _dense(value), locations.contiguous(), weights.contiguous()
        grad_output = grad_output.contiguous()
        grad_locations = torch.empty_like(locations)
        grad_weights = torch.empty_like(weights, dtype=torch.float32)
        if _is_empty(grad_output, locations):
            return value.new_zeros(value.shape), grad_locations.zero_(), grad_weights.to(weights.dtype).zero_()
        scaling = None
        if torch.are_deterministic_algorithms_enabled():
            scaling = _fixed_point_scaling(grad_output, locations, weights if centres is None else None)
        # Half-precision sums of many small terms would lose them.
        sum_dtype = torch.float32 if scaling is None else torch.int64
        grad_value = torch.empty_strided(value.shape, value.stride(), dtype=sum_dtype, device=value.device).zero_()
        gradients = (grad_value, grad_locations, grad_weights)
        inputs = (value, spatial_shapes, locations, weights)
        _launch_backward(library, grad_output, inputs, gradients, centres=centres, scaling=scaling)
        if scaling is not None:
            grad_value = grad_value.float() * scaling[1]
        return _contiguous_as(grad_value, value.dtype), grad_locations, grad_weights.to(weights.dtype)


def _launch_backward(
    library: ctypes.CDLL,
    grad_output: Tensor,
    inputs: tuple[Tensor, Sequence[int], Tensor, Tensor],
    gradients: tuple[Tensor, Tensor, Tensor],
    *,
    centres: Tensor | None,
    scaling: Tensor | None,
) -> None:
    """Fill the gradients of value, locations and weights, given value, shapes, locations and weights."""
    value, spatial_shapes, locations, weights = inputs
    status = library.m2f_cuda_ms_deform_attn_backward(
        CUDA_DTYPES[value.dtype],
        grad_output.data_ptr(),
        value.data_ptr(),
        _shape_array(spatial_shapes),
        locations.data_ptr(),
        weights.data_ptr(),
        _pointer(centres),
        *(gradient.data_ptr() for gradient in gradients),
        _size_array(value, locations),
        _pointer(scaling),
        torch.cuda.current_stream().cuda_stream,
    )
    _raise_error(library, status)


def _cuda_library_for(value: Tensor, spatial_shapes: Sequence[int]) -> ctypes.CDLL | None:
    fits = len(spatial_shapes) <= 2 * _MAX_LEVELS and value.shape[1] <= _MAX_TOKENS
    return native.cuda_library() if value.dtype in CUDA_DTYPES and fits else None


def _dense(value: Tensor) -> Tensor:
    """Return ``value`` if its memory is (B, M, S, D) or (B, S, M, D) without gaps, else a copy that is."""
    return value if value.transpose(1, 2).is_contiguous() else value.contiguous()


def _contiguous_as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor contiguous and of a dtype, with at most one copy."""
    if tensor.dtype == dtype and tensor.is_contiguous():
        return tensor
    return torch.empty(tensor.shape, dtype=dtype, device=tensor.device).copy_(tensor)


def _fixed_point_scaling(grad_output: Tensor, locations: Tensor, weights: Tensor | None) -> Tensor:
    """Return (2,): the factor from numbers to fixed point, and its inverse. No sum can overflow."""
    bound = grad_output.abs().amax().float()
    if weights is not None:  # those of a softmax are at most 1
        bound = bound * weights.abs().amax()
    additions = locations.shape[1] * locations.shape[4]  # at most, to one token: one from each point of its level
    scale = (2.0 ** (_FIXED_POINT_BITS - additions.bit_length()) / bound).clamp(max=1e37)  # stays finite at bound 0
    return torch.stack([scale, 1 / scale])


def _size_array(value: Tensor, locations: Tensor) -> Any:
    return _shape_array((*_sizes_of(value, locations), *value.stride()[:3]))


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _raise_error(library: ctypes.CDLL, status: int) -> None:
    if status:
        raise RuntimeError(f"ms_deform_attn: CUDA kernel launch failed: {library.m2f_cuda_error(status).decode()}")


def _sizes_of(value: Tensor, sampling_locations: Tensor) -> tuple[int, ...]:
    """Return B, S, M, D, Q, L, P as C integers."""
    _, queries, _, levels, points, _ = sampling_locations.shape
    return (*value.shape, queries, levels, points)


def _is_empty(output: Tensor, locations: Tensor) -> bool:
    """Return whether there is nothing to compute; the kernels need something."""
    return output.numel() == 0 or locations.numel() == 0


def _shape_array(spatial_shapes: Sequence[int]) -> Any:
    """Return integers as C functions take them."""
    return (ctypes.c_int64 * len(spatial_shapes))(*spatial_shapes)
