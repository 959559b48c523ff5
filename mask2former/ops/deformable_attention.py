"""Multi-scale deformable attention (Deformable DETR, arXiv:2010.04159, eq. 3) as two torch operators.

``mask2former::ms_deform_attn`` takes sampling locations and attention weights. ``mask2former::ms_deform_attn_fused``
takes offsets and logits, the outputs of an encoder layer's linear maps, and computes locations and weights inside its
kernels. ``torch.compile`` and ``torch.export`` see both as opaque operators with a backward operator. They run compiled
kernels for CPU and CUDA where these are built, else PyTorch. Letters: B batch, S tokens of all levels, M heads, D
channels of a head, Q queries, L levels, P points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mask2former.ops import native
from mask2former.ops.deformable_attention_kernels import (
    CUDA_DTYPES,
    backward_cpu,
    backward_cuda,
    forward_cpu,
    forward_cuda,
    serves_cpu,
)
from mask2former.ops.deformable_attention_reference import (
    Shapes,
    check_arguments,
    check_centres,
    check_grad_output,
    check_shapes,
    flatten_shapes,
    output_shape,
    promote_weights,
    reference_backward,
    reference_forward,
)
from mask2former.ops.replacement import Replaceable

Gradients = tuple[Tensor, Tensor, Tensor]

# Looked up at each call, when the library below has defined it.
deformable_operator = Replaceable(lambda *args: torch.ops.mask2former.ms_deform_attn(*args))


def ms_deform_attn(
    value: Tensor, spatial_shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Return for each query and head the weighted sum of bilinear samples from the maps of all levels.

    Args:
        value: (B, S, M, D) float32, float64, bfloat16 or float16; the pixels of each level in row-major order, one
            level after the other.
        spatial_shapes: (height, width) of each level, best as Python ints: ``[(h, w), …]`` or flat. An (L, 2) integer
            tensor is copied to the host. The areas sum to S.
        sampling_locations: (B, Q, M, L, P, 2) as (x, y), 0 to 1 from edge to edge of the level; outside the map is
            zero. float64 for a float64 value, else float32 (bfloat16 cannot represent locations on a map wider than
            128).
        attention_weights: (B, Q, M, L, P), in the dtype of the locations or half precision.

    Returns:
        (B, Q, M * D) in the dtype of the value, accumulated in the dtype of the locations.

    Raises:
        ValueError: a shape, dtype or device is wrong.
    """
    shapes = flatten_shapes(spatial_shapes)
    weights = promote_weights(attention_weights, sampling_locations)
    return deformable_operator(value, shapes, sampling_locations, weights)


def ms_deform_attn_reference(
    value: Tensor, spatial_shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Return ``ms_deform_attn`` of the same arguments in plain PyTorch operators, for every device and exporter."""
    shapes = flatten_shapes(spatial_shapes)
    weights = promote_weights(attention_weights, sampling_locations)
    check_arguments(value, shapes, sampling_locations, weights)
    return reference_forward(value, shapes, sampling_locations, weights)


def _forward_by(kernel: Callable[..., Tensor | None]) -> Callable[..., Tensor]:
    """Return the operator that runs a kernel, and the reference where the kernel returns None."""

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


def ms_deform_attn_fused(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], *, centres: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    """Return ``ms_deform_attn`` at offsets from each query's centre, with softmax weights, as in an encoder layer.

    On CUDA, and on a CPU without gradients, locations and weights are never stored.

    Args:
        value: as in ``ms_deform_attn``.
        spatial_shapes: as in ``ms_deform_attn``.
        centres: (Q, 2) as (x, y), 0 to 1 from edge to edge of every level, float32 or float64.
        offsets: (B, Q, M, L, P, 2) in pixels of each level.
        logits: (B, Q, M, L, P), of a softmax over all points of a head.

    Returns:
        (B, Q, M * D) in the dtype of the value.

    Raises:
        ValueError: a shape, dtype or device is wrong.
    """
    is_uniform = _is_uniform(value, offsets, logits) and centres.device == value.device
    if (
        value.is_cuda
        and is_uniform
        and value.dtype in CUDA_DTYPES
        and not (centres.requires_grad or torch.jit.is_tracing())
    ):
        shapes = flatten_shapes(spatial_shapes)
        by_head = value.transpose(1, 2).contiguous().transpose(1, 2)  # neighbouring pixels of a head side by side
        return torch.ops.mask2former.ms_deform_attn_fused(by_head, shapes, centres, offsets, logits)
    if is_uniform and native.is_eager_cpu_inference(value):
        output = _fused_cpu(value, flatten_shapes(spatial_shapes), centres, offsets, logits)
        if output is not None:
            return output
    locations, weights = _locations_and_weights(spatial_shapes, centres, offsets, logits)
    return ms_deform_attn(value, spatial_shapes, locations, weights)


def _locations_and_weights(
    spatial_shapes: Sequence[tuple[int, int]], centres: Tensor, offsets: Tensor, logits: Tensor
) -> tuple[Tensor, Tensor]:
    # Places and their weights have at least float32: bfloat16 cannot tell neighbouring pixels of a wide map apart.
    precise = torch.promote_types(offsets.dtype, torch.float32)
    pixels = torch.tensor([[1 / w, 1 / h] for h, w in spatial_shapes], dtype=precise, device=offsets.device)  # (L, 2)
    locations = torch.addcmul(centres.to(precise)[:, None, None, None], offsets.to(precise), pixels[:, None])
    weights = _softmax_over_few(logits.to(precise).flatten(3)).view(logits.shape)
    return locations, weights


def _is_uniform(value: Tensor, offsets: Tensor, logits: Tensor) -> bool:
    return all(tensor.dtype == value.dtype and tensor.device == value.device for tensor in (offsets, logits))


def _softmax_over_few(x: Tensor) -> Tensor:
    if not x.is_cpu or torch.compiler.is_compiling():
        return x.softmax(-1)
    # The CPU kernel works along the last axis, which is short here; written out, this takes a fifth of its time.
    exponentials = (x - x.detach().amax(-1, keepdim=True)).exp()
    return exponentials / exponentials.sum(-1, keepdim=True)


def _fused_cpu(value: Tensor, shapes: Sequence[int], centres: Tensor, offsets: Tensor, logits: Tensor) -> Tensor | None:
    if not serves_cpu(value) or offsets.numel() == 0:
        return None
    _check_fused(value, shapes, centres, offsets, logits)
    exact = torch.float64 if value.dtype == torch.float64 else torch.float32
    return forward_cpu(value, shapes, offsets, logits, centres=centres.to(exact).contiguous())


def _check_fused(value: Tensor, shapes: Sequence[int], centres: Tensor, offsets: Tensor, logits: Tensor) -> None:
    check_shapes(value, shapes, offsets, logits)
    check_centres(centres, offsets)
    if not _is_uniform(value, offsets, logits) or centres.device != value.device:
        found = ", ".join(f"{tensor.dtype} on {tensor.device}" for tensor in (value, offsets, logits, centres))
        raise ValueError(f"value, offsets and logits must have one dtype, and centres their device, got {found}")


def _fused_default(value: Tensor, shapes: Sequence[int], centres: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    _check_fused(value, shapes, centres, offsets, logits)
    locations, weights = _locations_and_weights(_pairs(shapes), centres, offsets, logits)
    return torch.ops.mask2former.ms_deform_attn(value, shapes, locations, weights)


def _fused_cuda(value: Tensor, shapes: Sequence[int], centres: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    _check_fused(value, shapes, centres, offsets, logits)
    output = forward_cuda(value, shapes, offsets, logits, centres=centres.float().contiguous())
    return _fused_default(value, shapes, centres, offsets, logits) if output is None else output


def _fused_default_backward(
    grad_output: Tensor, value: Tensor, shapes: Sequence[int], centres: Tensor, offsets: Tensor, logits: Tensor
) -> Gradients:
    _check_fused(value, shapes, centres, offsets, logits)
    locations, weights = _locations_and_weights(_pairs(shapes), centres, offsets, logits)
    grad_value, grad_locations, grad_weights = torch.ops.mask2former.ms_deform_attn_backward(
        grad_output, value, shapes, locations, weights
    )
    sizes = torch.tensor([[w, h] for h, w in _pairs(shapes)], dtype=locations.dtype, device=locations.device)  # (L, 2)
    grad_offsets = grad_locations / sizes[:, None]
    mean = (weights * grad_weights).sum((-2, -1), keepdim=True)
    return grad_value, grad_offsets.to(offsets.dtype), (weights * (grad_weights - mean)).to(logits.dtype)


def _fused_cuda_backward(
    grad_output: Tensor, value: Tensor, shapes: Sequence[int], centres: Tensor, offsets: Tensor, logits: Tensor
) -> Gradients:
    _check_fused(value, shapes, centres, offsets, logits)
    check_grad_output(grad_output, value, offsets)
    grads = backward_cuda(grad_output, value, shapes, offsets, logits, centres=centres.float().contiguous())
    return _fused_default_backward(grad_output, value, shapes, centres, offsets, logits) if grads is None else grads


def _pairs(shapes: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(shapes[0::2], shapes[1::2], strict=True))


def _fused_fake(value: Tensor, shapes: Sequence[int], centres: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    _check_fused(value, shapes, centres, offsets, logits)
    return value.new_empty(output_shape(value, offsets))


def _fused_fake_backward(
    grad_output: Tensor, value: Tensor, shapes: Sequence[int], centres: Tensor, offsets: Tensor, logits: Tensor
) -> Gradients:
    return value.new_empty(value.shape), offsets.new_empty(offsets.shape), logits.new_empty(logits.shape)


def _fused_setup_context(ctx: Any, inputs: tuple[Tensor, list[int], Tensor, Tensor, Tensor], output: Tensor) -> None:
    value, ctx.shapes, *rest = inputs
    ctx.save_for_backward(value, *rest)


def _fused_backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, *rest = ctx.saved_tensors
    grad_value, grad_offsets, grad_logits = torch.ops.mask2former.ms_deform_attn_fused_backward(
        grad_output, value, ctx.shapes, *rest
    )
    return grad_value, None, None, grad_offsets, grad_logits  # centres are constants


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

_FUSED_INPUTS = "Tensor value, SymInt[] shapes, Tensor centres, Tensor offsets, Tensor logits"
_OPERATORS.define(f"ms_deform_attn_fused({_FUSED_INPUTS}) -> Tensor")
_OPERATORS.define(f"ms_deform_attn_fused_backward(Tensor grad_output, {_FUSED_INPUTS}) -> (Tensor, Tensor, Tensor)")
_FUSED = "mask2former::ms_deform_attn_fused"
for _key, _fused_kernel, _fused_backward_kernel in (
    ("CompositeExplicitAutograd", _fused_default, _fused_default_backward),
    ("CUDA", _fused_cuda, _fused_cuda_backward),
):
    _OPERATORS.impl("ms_deform_attn_fused", _fused_kernel, _key)
    _OPERATORS.impl("ms_deform_attn_fused_backward", _fused_backward_kernel, _key)
torch.library.register_fake(_FUSED, _fused_fake, lib=_OPERATORS)
torch.library.register_fake(f"{_FUSED}_backward", _fused_fake_backward, lib=_OPERATORS)
torch.library.register_autograd(_FUSED, _fused_backward, setup_context=_fused_setup_context, lib=_OPERATORS)
