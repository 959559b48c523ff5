"""Multi-scale deformable attention by the C++ kernels; None where they are not built or cannot serve.

Letters: B batch, S tokens of all levels, M heads, D channels of a head, Q queries, L levels, P points.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from mask2former.ops import native
from mask2former.ops.deformable_attention_arguments import MAX_TOKENS, is_empty, output_shape, shape_array, sizes_of


def serves_cpu(value: Tensor) -> bool:
    """Whether the kernels take this case."""
    return _library_for(value) is not None


def forward_cpu(
    value: Tensor,
    spatial_shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    *,
    centres: Tensor | None = None,
) -> Tensor | None:
    """(B, Q, M * D). With centres, locations are offsets from them in pixels and weights logits, all of one dtype."""
    library = _library_for(value)
    if library is None:
        return None
    value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
    output = value.new_empty(output_shape(value, locations))
    if is_empty(output, locations):
        return output.zero_()
    status = library.m2f_ms_deform_attn_forward(
        native.DTYPES[value.dtype],
        value.data_ptr(),
        shape_array(spatial_shapes),
        locations.data_ptr(),
        weights.data_ptr(),
        output.data_ptr(),
        *sizes_of(value, locations),
        None if centres is None else centres.data_ptr(),
        torch.get_num_threads(),
    )
    native.check_status(status)
    return output


def backward_cpu(
    grad_output: Tensor, value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The gradients of value, locations and weights."""
    library = _library_for(value)
    if library is None:
        return None
    value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
    grad_output = grad_output.contiguous()
    grads = torch.empty_like(value), torch.empty_like(locations), torch.empty_like(weights)
    if is_empty(grad_output, locations):
        return grads[0].zero_(), grads[1].zero_(), grads[2].zero_()
    status = library.m2f_ms_deform_attn_backward(
        native.DTYPES[value.dtype],
        grad_output.data_ptr(),
        value.data_ptr(),
        shape_array(spatial_shapes),
        locations.data_ptr(),
        weights.data_ptr(),
        *(grad.data_ptr() for grad in grads),
        *sizes_of(value, locations),
        torch.get_num_threads(),
    )
    native.check_status(status)
    return grads


def _library_for(value: Tensor) -> ctypes.CDLL | None:
    return native.cpu_library() if value.dtype in native.DTYPES and value.shape[1] <= MAX_TOKENS else None
