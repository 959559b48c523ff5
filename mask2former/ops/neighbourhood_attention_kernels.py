"""Neighbourhood attention by the C++ and CUDA kernels; None where they are not built or cannot serve.

Maps may have gaps between pixels and heads, as the parts of one linear layer's output have, but not between channels.
Letters: B batch, H W height and width of the map of keys, h w of that of queries, M heads, D channels of a head.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from mask2former.ops import native
from mask2former.ops.deformable_attention_kernels import CUDA_DTYPES
from mask2former.ops.neighbourhood_attention_reference import Gradients

_MAX_CUDA_CHANNELS = 32  # of a head, one for each lane of a warp, however its rows are aligned
_MAX_SIDE = 2**15  # places in a map are 32-bit


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


def forward_cuda(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, kernel_size: int, dilation: int, scale: float
) -> Tensor | None:
    """Return (B, h, w, M, D)."""
    with torch.cuda.device(query.device):
        library = _cuda_library_for(query, key)
        if library is None:
            return None
        output = query.new_empty(query.shape)
        if output.numel() == 0:
            return output
        query, key, value, bias = _dense(query), _dense(key), _dense(value), bias.contiguous()
        status = library.m2f_cuda_neighbourhood_forward(
            CUDA_DTYPES[query.dtype],
            *(tensor.data_ptr() for tensor in (query, key, value, bias, output)),
            _size_array(query, key, value, kernel_size, dilation),
            scale,
            torch.cuda.current_stream().cuda_stream,
        )
        _raise_error(library, status)
        return output


def backward_cuda(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    kernel_size: int,
    dilation: int,
    scale: float,
) -> Gradients | None:
    """Return the gradients of query, key, value and bias.

    None under ``torch.use_deterministic_algorithms(True)``: the sums of the bias's gradient have no fixed order.
    """
    with torch.cuda.device(query.device):
        library = None if torch.are_deterministic_algorithms_enabled() else _cuda_library_for(query, key)
        if library is None:
            return None
        grads = tuple(tensor.new_empty(tensor.shape) for tensor in (query, key, value))
        grad_bias = torch.zeros_like(bias, memory_format=torch.contiguous_format)
        if query.numel() == 0:
            return grads[0], grads[1].zero_(), grads[2].zero_(), grad_bias
        query, key, value, bias = _dense(query), _dense(key), _dense(value), bias.contiguous()
        grad_output = grad_output.contiguous()
        kept = bias.new_empty(*query.shape[:4], 2)
        status = library.m2f_cuda_neighbourhood_backward(
            CUDA_DTYPES[query.dtype],
            *(tensor.data_ptr() for tensor in (grad_output, query, key, value, bias, *grads, grad_bias, kept)),
            _size_array(query, key, value, kernel_size, dilation),
            scale,
            torch.cuda.current_stream().cuda_stream,
        )
        _raise_error(library, status)
        return grads[0], grads[1], grads[2], grad_bias


def _cuda_library_for(query: Tensor, key: Tensor) -> ctypes.CDLL | None:
    is_small = query.shape[-1] <= _MAX_CUDA_CHANNELS and max(key.shape[1:3]) < _MAX_SIDE
    return native.cuda_library() if query.dtype in CUDA_DTYPES and is_small else None


def _cpu_library_for(query: Tensor) -> ctypes.CDLL | None:
    return native.cpu_library() if query.dtype in native.DTYPES else None


def _raise_error(library: ctypes.CDLL, status: int) -> None:
    if status:
        message = library.m2f_cuda_error(status).decode()
        raise RuntimeError(f"neighbourhood_attention: CUDA kernel launch failed: {message}")


def _dense(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy of it, with the channels of a head side by side."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _size_array(query: Tensor, key: Tensor, value: Tensor, kernel_size: int, dilation: int) -> Any:
    """Return B, M, D, h, w, H, W, k, the dilation, and the strides over B, rows, columns and M as C integers."""
    batch, query_height, query_width, heads, channels = query.shape
    sizes = [batch, heads, channels, query_height, query_width, *key.shape[1:3], kernel_size, dilation]
    strides = [stride for tensor in (query, key, value) for stride in tensor.stride()[:4]]
    return (ctypes.c_int64 * (len(sizes) + len(strides)))(*sizes, *strides)
