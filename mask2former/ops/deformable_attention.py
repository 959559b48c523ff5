"""Multi-scale deformable attention (Deformable DETR, arXiv:2010.04159, eq. 3) as one torch operator.

`torch.compile` and `torch.export` see the opaque operator mask2former::ms_deform_attn, which has a backward operator.
Behind it: compiled kernels for CPU and CUDA where they are built, PyTorch everywhere else.
Letters: B batch, S tokens of all levels, M heads, D channels of a head, Q queries, L levels, P points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mask2former.ops.deformable_attention_arguments import (
    Shapes,
    check_arguments,
    check_grad_output,
    flatten_shapes,
    output_shape,
    promote_weights,
)
from mask2former.ops.deformable_attention_cpu import backward_cpu, forward_cpu
from mask2former.ops.deformable_attention_cuda import backward_cuda, forward_cuda
from mask2former.ops.deformable_attention_reference import reference_backward, reference_forward

Gradients = tuple[Tensor, Tensor, Tensor]


def ms_deform_attn(
    value: Tensor, spatial_shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """For each query and head the weighted sum of bilinear samples of all levels' maps.

    value: (B, S, M, D) float32, float64, bfloat16 or float16; the levels' pixels in row-major order, one level after
        the other.
    spatial_shapes: (height, width) of each level, best as Python ints: `[(h, w), …]` or flat; an (L, 2) integer tensor
        is copied to the host. Their areas sum to S.
    sampling_locations: (B, Q, M, L, P, 2) as (x, y), 0 to 1 from edge to edge of the level; outside the map is zero.
        float64 for a float64 value, else float32 (bfloat16 cannot place a point on a map wider than 128).
    attention_weights: (B, Q, M, L, P), dtype of the locations or half precision.
    Returns (B, Q, M * D) in the dtype of the value. Accumulates in the dtype of the locations.
    Raises ValueError for a wrong shape, dtype or device.
    """
    shapes = flatten_shapes(spatial_shapes)
    weights = promote_weights(attention_weights, sampling_locations)
    return torch.ops.mask2former.ms_deform_attn(value, shapes, sampling_locations, weights)


def ms_deform_attn_reference(
    value: Tensor, spatial_shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """The same in plain PyTorch operators, for every device and exporter; arguments as in `ms_deform_attn`."""
    shapes = flatten_shapes(spatial_shapes)
    weights = promote_weights(attention_weights, sampling_locations)
    check_arguments(value, shapes, sampling_locations, weights)
    return reference_forward(value, shapes, sampling_locations, weights)


def _forward_by(kernel: Callable[..., Tensor | None]) -> Callable[..., Tensor]:
    """The operator by a kernel, and by the reference where that returns None."""

    def forward(
        value: Tensor, spatial_shapes: Sequence[int], sampling_locations: Tensor, attention_weights: Tensor
    ) -> Tensor:
        inputs = value, spatial_shapes, sampling_locations, attention_weights
        check_arguments(*inputs)
        output = kernel(*inputs)
        return reference_forward(*inputs) if output is None else output

    return forward


def _backward_by(kernel: Callable[..., Gradients | None]) -> Callable[..., Gradients]:
    def backward(
        grad_output: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[int],
        sampling_locations: Tensor,
        attention_weights: Tensor,
    ) -> Gradients:
        inputs = value, spatial_shapes, sampling_locations, attention_weights
        check_arguments(*inputs)
        check_grad_output(grad_output, value, sampling_locations)
        grads = kernel(grad_output, *inputs)
        return reference_backward(grad_output, *inputs) if grads is None else grads

    return backward


def _forward_fake(
    value: Tensor, spatial_shapes: Sequence[int], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    check_arguments(value, spatial_shapes, sampling_locations, attention_weights)
    return value.new_empty(output_shape(value, sampling_locations))


def _backward_fake(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Gradients:
    return (
        value.new_empty(value.shape),
        sampling_locations.new_empty(sampling_locations.shape),
        attention_weights.new_empty(attention_weights.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Tensor, list[int], Tensor, Tensor], output: Tensor) -> None:
    value, ctx.spatial_shapes, sampling_locations, attention_weights = inputs
    ctx.save_for_backward(value, sampling_locations, attention_weights)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    value, locations, weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = torch.ops.mask2former.ms_deform_attn_backward(
        grad_output, value, ctx.spatial_shapes, locations, weights
    )
    return grad_value, None, grad_locations, grad_weights


_INPUTS = "Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights"
_OPERATORS = torch.library.Library("mask2former", "DEF")
_OPERATORS.define(f"ms_deform_attn({_INPUTS}) -> Tensor")
_OPERATORS.define(f"ms_deform_attn_backward(Tensor grad_output, {_INPUTS}) -> (Tensor, Tensor, Tensor)")
for _key, _forward_kernel, _backward_kernel in (
    ("CompositeExplicitAutograd", reference_forward, reference_backward),
    ("CPU", forward_cpu, backward_cpu),
    ("CUDA", forward_cuda, backward_cuda),
):
    _OPERATORS.impl("ms_deform_attn", _forward_by(_forward_kernel), _key)
    _OPERATORS.impl("ms_deform_attn_backward", _backward_by(_backward_kernel), _key)
torch.library.register_fake("mask2former::ms_deform_attn", _forward_fake, lib=_OPERATORS)
torch.library.register_fake("mask2former::ms_deform_attn_backward", _backward_fake, lib=_OPERATORS)
torch.library.register_autograd("mask2former::ms_deform_attn", _backward, setup_context=_setup_context, lib=_OPERATORS)
