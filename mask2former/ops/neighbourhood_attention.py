"""Dilated neighbourhood attention with relative bias (arXiv:2204.07143, arXiv:2209.15001) as a torch operator.

``torch.compile`` and ``torch.export`` see ``mask2former::neighbourhood_attention`` as an opaque operator with a
backward operator. It runs compiled kernels for CPU and CUDA where these are built, else PyTorch. Letters: B batch, H W
height and width of the map of keys, h w of that of queries, M heads, D channels of a head, k kernel size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mask2former.ops.neighbourhood_attention_kernels import backward_cpu, backward_cuda, forward_cpu, forward_cuda
from mask2former.ops.neighbourhood_attention_reference import Gradients, reference_backward, reference_forward
from mask2former.ops.replacement import Replaceable

_MAP_DIMS = 5
# Looked up at each call, when the library below has defined it.
neighbourhood_operator = Replaceable(lambda *args: torch.ops.mask2former.neighbourhood_attention(*args))


def neighbourhood_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, *, kernel_size: int, dilation: int, scale: float
) -> Tensor:
    """Return for each query the softmax attention to the k x k nearest keys of those ``dilation`` apart.

    At the border the window is shifted inwards: it always holds k x k keys.

    Args:
        query: (B, h, w, M, D) float32, float64, bfloat16 or float16; query (y, x) has the place of key (y, x).
        key, value: (B, H, W, M, D) in the dtype of the query; H, W at least k * ``dilation``, h, w at most H, W.
        bias: (M, 2 k - 1, 2 k - 1), added to the logits by the distance in units of ``dilation``; any floating dtype.
        kernel_size: k, odd.
        dilation: distance of neighbouring keys of a window, at least 1.
        scale: factor on the products of queries and keys.

    Returns:
        (B, h, w, M, D) in the dtype of the query, accumulated in float32 at least.

    Raises:
        ValueError: a shape, dtype, device or number is wrong.
    """
    bias = _promote(bias, query)
    return neighbourhood_operator(query, key, value, bias, kernel_size, dilation, scale)


def neighbourhood_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    *,
    kernel_size: int,
    dilation: int,
    scale: float,
    dropout: float = 0.0,
) -> Tensor:
    """Return ``neighbourhood_attention`` of the same arguments in plain PyTorch operators, for every exporter.

    ``dropout`` is the share of attention weights that become zero.
    """
    bias = _promote(bias, query)
    check_arguments(query, key, value, bias, kernel_size, dilation)
    return reference_forward(query, key, value, bias, kernel_size, dilation, scale, dropout=dropout)


def check_arguments(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, kernel_size: int, dilation: int) -> None:
    """Raise ValueError unless the arguments are as ``neighbourhood_attention`` wants them, the bias promoted."""
    if kernel_size < 1 or kernel_size % 2 == 0 or dilation < 1:
        raise ValueError(f"kernel_size must be odd and dilation at least 1, got {kernel_size} and {dilation}")
    if query.ndim != _MAP_DIMS or key.ndim != _MAP_DIMS or value.shape != key.shape:
        found = ", ".join(str(tuple(tensor.shape)) for tensor in (query, key, value))
        raise ValueError(f"query must be (B, h, w, M, D), key and value (B, H, W, M, D), got {found}")
    if query.shape[0] != key.shape[0] or query.shape[3:] != key.shape[3:]:
        raise ValueError(f"query {tuple(query.shape)} and key {tuple(key.shape)} must agree in B, M and D")
    least = kernel_size * dilation
    if any(key.shape[dim] < least or query.shape[dim] > key.shape[dim] for dim in (1, 2)):
        raise ValueError(
            f"a map of keys must have at least {least} rows and columns, and those of the queries: got keys "
            f"{tuple(key.shape[1:3])}, queries {tuple(query.shape[1:3])}"
        )
    side = 2 * kernel_size - 1
    if tuple(bias.shape) != (query.shape[3], side, side):
        raise ValueError(f"bias must be {(query.shape[3], side, side)}, got {tuple(bias.shape)}")
    same = all(tensor.dtype == query.dtype for tensor in (key, value))
    if not same or not query.is_floating_point() or bias.dtype != _exact_dtype(query):
        found = ", ".join(str(tensor.dtype) for tensor in (query, key, value, bias))
        raise ValueError(f"query, key and value must have one floating dtype, bias {_exact_dtype(query)}: got {found}")
    if any(tensor.device != query.device for tensor in (key, value, bias)):
        raise ValueError("query, key, value and bias must be on one device")


def _exact_dtype(query: Tensor) -> torch.dtype:
    return torch.float64 if query.dtype == torch.float64 else torch.float32


def _promote(bias: Tensor, query: Tensor) -> Tensor:
    return bias.to(_exact_dtype(query)) if bias.is_floating_point() else bias


def _forward_by(kernel: Callable[..., Tensor | None]) -> Callable[..., Tensor]:
    """Return the operator that runs a kernel, and the reference where the kernel returns None."""

    def forward(
        query: Tensor, key: Tensor, value: Tensor, bias: Tensor, kernel_size: int, dilation: int, scale: float
    ) -> Tensor:
        check_arguments(query, key, value, bias, kernel_size, dilation)
        output = kernel(query, key, value, bias, kernel_size, dilation, scale)
        if output is None:
            output = reference_forward(query, key, value, bias, kernel_size, dilation, scale)
        return output

    return forward


def _backward_by(kernel: Callable[..., Gradients | None]) -> Callable[..., Gradients]:
    def backward(
        grad_output: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor,
        kernel_size: int,
        dilation: int,
        scale: float,
    ) -> Gradients:
        check_arguments(query, key, value, bias, kernel_size, dilation)
        if grad_output.shape != query.shape or grad_output.dtype != query.dtype or grad_output.device != query.device:
            found = f"{tuple(grad_output.shape)} of {grad_output.dtype} on {grad_output.device}"
            raise ValueError(f"grad_output must be like query, {tuple(query.shape)} of {query.dtype}, got {found}")
        inputs = grad_output, query, key, value, bias, kernel_size, dilation, scale
        grads = kernel(*inputs)
        return reference_backward(*inputs) if grads is None else grads

    return backward


def _forward_fake(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, kernel_size: int, dilation: int, scale: float
) -> Tensor:
    check_arguments(query, key, value, bias, kernel_size, dilation)
    return query.new_empty(query.shape)


def _backward_fake(grad_output: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in inputs[:4])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.mask2former.neighbourhood_attention_backward(grad_output, *ctx.saved_tensors, *ctx.options)
    return (*grads, None, None, None)


_NAME = "neighbourhood_attention"
_INPUTS = "Tensor query, Tensor key, Tensor value, Tensor bias, int kernel_size, int dilation, float scale"
_OPERATORS = torch.library.Library("mask2former", "FRAGMENT")
_OPERATORS.define(f"{_NAME}({_INPUTS}) -> Tensor")
_OPERATORS.define(f"{_NAME}_backward(Tensor grad_output, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)")
for _key, _forward_kernel, _backward_kernel in (
    ("CompositeExplicitAutograd", reference_forward, reference_backward),
    ("CPU", forward_cpu, backward_cpu),
    ("CUDA", forward_cuda, backward_cuda),
):
    _OPERATORS.impl(_NAME, _forward_by(_forward_kernel), _key)
    _OPERATORS.impl(f"{_NAME}_backward", _backward_by(_backward_kernel), _key)
torch.library.register_fake(f"mask2former::{_NAME}", _forward_fake, lib=_OPERATORS)
torch.library.register_fake(f"mask2former::{_NAME}_backward", _backward_fake, lib=_OPERATORS)
torch.library.register_autograd(f"mask2former::{_NAME}", _backward, setup_context=_setup_context, lib=_OPERATORS)
