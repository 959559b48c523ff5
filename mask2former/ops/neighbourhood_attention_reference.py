"""Neighbourhood attention in PyTorch operators alone: row by row of the window, keys and values are gathered.

Letters: B batch, H W height and width of the map of keys, h w of that of queries, M heads, D channels of a head, k
kernel size; y x axes of queries, i j of the window. On an axis with dilation d, a query at position t belongs to
residue class t mod d and is number p = t div d there; its window begins at number p - (k - 1) / 2 of the class, shifted
inwards at the border.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


class Windows(NamedTuple):
    """What each query's window takes along one axis, in two tensors (queries, k)."""

    positions: Tensor  # of keys
    offsets: Tensor  # into the relative bias


def windows(num_queries: int, length: int, *, kernel_size: int, dilation: int, device: torch.device) -> Windows:
    """Return the windows along an axis of ``length`` keys, of which the first ``num_queries`` are queries as well."""
    position = torch.arange(num_queries, device=device)
    residue = position % dilation
    number = torch.div(position, dilation, rounding_mode="floor")
    members = torch.div(length - residue + dilation - 1, dilation, rounding_mode="floor")
    start = torch.minimum((number - kernel_size // 2).clamp(min=0), members - kernel_size)
    window = start[:, None] + torch.arange(kernel_size, device=device)  # (queries, k)
    return Windows(window * dilation + residue[:, None], window - number[:, None] + kernel_size - 1)


def reference_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    kernel_size: int,
    dilation: int,
    scale: float,
    *,
    dropout: float = 0.0,
) -> Tensor:
    """Return (B, h, w, M, D); ``dropout`` is the share of attention weights that become zero."""
    rows, columns = _axes(query, key, kernel_size, dilation)
    weights = _weights(query * scale, key, bias, rows, columns)  # (B, h, w, M, k k)
    weights = F.dropout(weights, dropout) if dropout else weights
    output = torch.zeros((), dtype=bias.dtype, device=query.device)
    for i, taken in enumerate(_window_rows(value, rows, columns)):
        of_row = weights[..., i * kernel_size : (i + 1) * kernel_size]
        output = output + torch.einsum("byxmj,byxjmd->byxmd", of_row, taken.to(bias.dtype))
    return output.to(query.dtype)


def reference_backward(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    kernel_size: int,
    dilation: int,
    scale: float,
) -> Gradients:
    """Return the gradients of query, key, value and bias, each with the shape and dtype of its tensor."""
    rows, columns = _axes(query, key, kernel_size, dilation)
    scaled, grad = (query * scale).to(bias.dtype), grad_output.to(bias.dtype)
    weights = _weights(query * scale, key, bias, rows, columns)  # (B, h, w, M, k k)
    values = (taken.to(bias.dtype) for taken in _window_rows(value, rows, columns))
    grad_weights = torch.cat([torch.einsum("byxmd,byxjmd->byxmj", grad, taken) for taken in values], dim=-1)
    grad_logits = weights * (grad_weights - (weights * grad_weights).sum(-1, keepdim=True))
    grad_query = torch.zeros_like(scaled)
    grad_key, grad_value, grad_bias = (bias.new_zeros(tensor.shape) for tensor in (key, value, bias))
    for i, taken in enumerate(_window_rows(key, rows, columns)):
        of_row = slice(i * kernel_size, (i + 1) * kernel_size)
        grad_row = grad_logits[..., of_row]
        grad_query += torch.einsum("byxmj,byxjmd->byxmd", grad_row, taken.to(bias.dtype))
        places = (rows.positions[:, i, None, None] * key.shape[2] + columns.positions).flatten()  # (h w k)
        for total, factor, of_query in ((grad_key, grad_row, scaled), (grad_value, weights[..., of_row], grad)):
            added = torch.einsum("byxmj,byxmd->byxjmd", factor, of_query)
            total.flatten(1, 2).index_add_(1, places, added.flatten(1, 3))
        entries = (rows.offsets[:, i, None, None] * bias.shape[2] + columns.offsets).flatten()
        grad_bias.flatten(1).index_add_(1, entries, grad_row.sum(0).permute(2, 0, 1, 3).flatten(1))
    grad_query = (grad_query * scale).to(query.dtype).contiguous()
    return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), grad_bias


def _axes(query: Tensor, key: Tensor, kernel_size: int, dilation: int) -> tuple[Windows, Windows]:
    rows, columns = (
        windows(query.shape[dim], key.shape[dim], kernel_size=kernel_size, dilation=dilation, device=query.device)
        for dim in (1, 2)
    )
    return rows, columns


def _window_rows(maps: Tensor, rows: Windows, columns: Windows) -> Iterator[Tensor]:
    """Yield for each row of the window what its queries take there of (B, H, W, M, D): (B, h, w, k, M, D)."""
    for positions in rows.positions.unbind(1):
        yield maps.index_select(1, positions)[:, :, columns.positions]


def _weights(scaled: Tensor, key: Tensor, bias: Tensor, rows: Windows, columns: Windows) -> Tensor:
    """Return the softmax over each window, (B, h, w, M, k k) in the dtype of the bias."""
    scaled = scaled.to(bias.dtype)
    logits = []
    for i, taken in enumerate(_window_rows(key, rows, columns)):
        relative = bias.index_select(1, rows.offsets[:, i])[:, :, columns.offsets]  # (M, h, w, k)
        dots = torch.einsum("byxmd,byxjmd->byxmj", scaled, taken.to(bias.dtype))
        logits.append(dots + relative.permute(1, 2, 0, 3))
    return torch.cat(logits, dim=-1).softmax(-1)
