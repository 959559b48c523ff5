"""Multi-scale deformable attention from what an encoder layer's linear maps put out: offsets and logits.

On CUDA one operator, mask2former::ms_deform_attn_around, forms places and weights inside its kernels, forward and
backward, and stores neither. On a CPU the kernel does so for inference. Elsewhere the steps are PyTorch's.
Letters: B batch, S tokens of all levels, M heads, D channels of a head, Q queries, L levels, P points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mask2former.ops.deformable_attention import Gradients, ms_deform_attn
from mask2former.ops.deformable_attention_arguments import (
    check_centres,
    check_grad_output,
    check_shapes,
    flatten_shapes,
    output_shape,
)
from mask2former.ops.deformable_attention_cpu import forward_cpu, serves_cpu
from mask2former.ops.deformable_attention_cuda import CUDA_DTYPES, backward_cuda, forward_cuda
from mask2former.ops.eager import is_eager_cpu_inference


def ms_deform_attn_around(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], *, centres: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    """`ms_deform_attn` at places around each query's own, weighted by a softmax: what an encoder layer computes.

    value, spatial_shapes, result: as in `ms_deform_attn`.
    centres: (Q, 2) as (x, y), 0 to 1 from edge to edge of every level, float32 or float64.
    offsets: (B, Q, M, L, P, 2) in pixels of each level. logits: (B, Q, M, L, P) of a softmax over all points of a head.
    On CUDA, and on a CPU without gradients, neither locations nor weights are ever stored.
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
        return torch.ops.mask2former.ms_deform_attn_around(by_head, shapes, centres, offsets, logits)
    if is_uniform and is_eager_cpu_inference(value):
        output = _forward_around_cpu(value, flatten_shapes(spatial_shapes), centres, offsets, logits)
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


def _forward_around_cpu(
    value: Tensor, shapes: Sequence[int], centres: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor | None:
    if not serves_cpu(value) or offsets.numel() == 0:
        return None
    _check_arguments(value, shapes, centres, offsets, logits)
    exact = torch.float64 if value.dtype == torch.float64 else torch.float32
    return forward_cpu(value, shapes, offsets, logits, centres=centres.to(exact).contiguous())


def _check_arguments(value: Tensor, shapes: Sequence[int], centres: Tensor, offsets: Tensor, logits: Tensor) -> None:
    check_shapes(value, shapes, offsets, logits)
    check_centres(centres, offsets)
    if not _is_uniform(value, offsets, logits) or centres.device != value.device:
        found = ", ".join(f"{tensor.dtype} on {tensor.device}" for tensor in (value, offsets, logits, centres))
        raise ValueError(f"value, offsets and logits must have one dtype, and centres their device, got {found}")


def _forward_default(value: Tensor, shapes: Sequence[int], centres: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    _check_arguments(value, shapes, centres, offsets, logits)
    locations, weights = _locations_and_weights(_pairs(shapes), centres, offsets, logits)
    return torch.ops.mask2former.ms_deform_attn(value, shapes, locations, weights)


def _forward_cuda(value: Tensor, shapes: Sequence[int], centres: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    _check_arguments(value, shapes, centres, offsets, logits)
    output = forward_cuda(value, shapes, offsets, logits, centres=centres.float().contiguous())
    return _forward_default(value, shapes, centres, offsets, logits) if output is None else output


def _backward_default(
    grad_output: Tensor, value: Tensor, shapes: Sequence[int], centres: Tensor, offsets: Tensor, logits: Tensor
) -> Gradients:
    _check_arguments(value, shapes, centres, offsets, logits)
    locations, weights = _locations_and_weights(_pairs(shapes), centres, offsets, logits)
    grad_value, grad_locations, grad_weights = torch.ops.mask2former.ms_deform_attn_backward(
        grad_output, value, shapes, locations, weights
    )
    sizes = torch.tensor([[w, h] for h, w in _pairs(shapes)], dtype=locations.dtype, device=locations.device)  # (L, 2)
    grad_offsets = grad_locations / sizes[:, None]
    mean = (weights * grad_weights).sum((-2, -1), keepdim=True)
    return grad_value, grad_offsets.to(offsets.dtype), (weights * (grad_weights - mean)).to(logits.dtype)


def _backward_cuda(
    grad_output: Tensor, value: Tensor, shapes: Sequence[int], centres: Tensor, offsets: Tensor, logits: Tensor
) -> Gradients:
    _check_arguments(value, shapes, centres, offsets, logits)
    check_grad_output(grad_output, value, offsets)
    grads = backward_cuda(grad_output, value, shapes, offsets, logits, centres=centres.float().contiguous())
    return _backward_default(grad_output, value, shapes, centres, offsets, logits) if grads is None else grads


def _pairs(shapes: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(shapes[0::2], shapes[1::2], strict=True))


def _forward_fake(value: Tensor, shapes: Sequence[int], centres: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    _check_arguments(value, shapes, centres, offsets, logits)
    return value.new_empty(output_shape(value, offsets))


def _backward_fake(
    grad_output: Tensor, value: Tensor, shapes: Sequence[int], centres: Tensor, offsets: Tensor, logits: Tensor
) -> Gradients:
    return value.new_empty(value.shape), offsets.new_empty(offsets.shape), logits.new_empty(logits.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, list[int], Tensor, Tensor, Tensor], output: Tensor) -> None:
    value, ctx.shapes, *rest = inputs
    ctx.save_for_backward(value, *rest)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, *rest = ctx.saved_tensors
    grad_value, grad_offsets, grad_logits = torch.ops.mask2former.ms_deform_attn_around_backward(
        grad_output, value, ctx.shapes, *rest
    )
    return grad_value, None, None, grad_offsets, grad_logits  # centres are constants


_INPUTS = "Tensor value, SymInt[] shapes, Tensor centres, Tensor offsets, Tensor logits"
_OPERATORS = torch.library.Library("mask2former", "FRAGMENT")
_OPERATORS.define(f"ms_deform_attn_around({_INPUTS}) -> Tensor")
_OPERATORS.define(f"ms_deform_attn_around_backward(Tensor grad_output, {_INPUTS}) -> (Tensor, Tensor, Tensor)")
_NAME = "mask2former::ms_deform_attn_around"
for _key, _forward_kernel, _backward_kernel in (
    ("CompositeExplicitAutograd", _forward_default, _backward_default),
    ("CUDA", _forward_cuda, _backward_cuda),
):
    _OPERATORS.impl("ms_deform_attn_around", _forward_kernel, _key)
    _OPERATORS.impl("ms_deform_attn_around_backward", _backward_kernel, _key)
torch.library.register_fake(_NAME, _forward_fake, lib=_OPERATORS)
torch.library.register_fake(f"{_NAME}_backward", _backward_fake, lib=_OPERATORS)
torch.library.register_autograd(_NAME, _backward, setup_context=_setup_context, lib=_OPERATORS)
