"""Neighbourhood attention by the C++ kernels; None where they are not built or cannot serve.

Maps may have gaps between pixels and heads, as the parts of one linear layer's output have, but not between channels.
Letters: B batch, H W height and width of the map of keys, h w of that of queries, M heads, D channels of a head.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from mask2former.ops import native
from mask2former.ops.neighbourhood_attention_reference import Gradients


def forward_cpu(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, kernel_size: int, dilation: int, scale: float
) -> Tensor | None:
    """Return (B, h, w, M, D)."""
    library = _cpu_library_for(query)
    if library is None:
        return None
    output = query.new_empty(query.shape)
    if output.numel() == 0:
        return output
    query, key, value, bias = _dense(query), _dense(key), _dense(value), bias.contiguous()
    status = library.m2f_neighbourhood_forward(
        native.DTYPES[query.dtype],
        *(tensor.data_ptr() for tensor in (query, key, value, bias, output)),
        _size_array(query, key, value, kernel_size, dilation),
        scale,
        torch.get_num_threads(),
    )
    native.check_status(status)
    return output


def backward_cpu(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    kernel_size: int,
    dilation: int,
    scale: float,
) -> Gradients | None:
    """Return the gradients of query, key, value and bias."""
    library = _cpu_library_for(query)
    if library is None:
        return None
    grads = tuple(tensor.new_empty(tensor.shape) for tensor in (query, key, value))
    if query.numel() == 0:
        return grads[0], grads[1].zero_(), grads[2].zero_(), torch.zeros_like(bias)
    query, key, value, bias = _dense(query), _dense(key), _dense(value), bias.contiguous()
    grad_output = grad_output.contiguous()
    grad_bias = bias.new_empty(query.shape[0] * dilation, *bias.shape)
    status = library.m2f_neighbourhood_backward(
        native.DTYPES[query.dtype],
        *(tensor.data_ptr() for tensor in (grad_output, query, key, value, bias, *grads, grad_bias)),
        _size_array(query, key, value, kernel_size, dilation),
        scale,
        torch.get_num_threads(),
    )
    native.check_status(status)
    return grads[0], grads[1], grads[2], grad_bias.sum(0)


def _cpu_library_for(query: Tensor) -> ctypes.CDLL | None:
    return native.cpu_library() if query.dtype in native.DTYPES else None


def _dense(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy of it, with the channels of a head side by side."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _size_array(query: Tensor, key: Tensor, value: Tensor, kernel_size: int, dilation: int) -> Any:
    """Return B, M, D, h, w, H, W, k, the dilation, and the strides over B, rows, columns and M as C integers."""
    batch, query_height, query_width, heads, channels = query.shape
    sizes = [batch, heads, channels, query_height, query_width, *key.shape[1:3], kernel_size, dilation]
    strides = [stride for tensor in (query, key, value) for stride in tensor.stride()[:4]]
    return (ctypes.c_int64 * (len(sizes) + len(strides)))(*sizes, *strides)
