"""Multi-scale deformable attention in plain PyTorch: the definition the native kernels are tested against.

Deformable DETR (arXiv:2010.04159), equation 3. Runs on every device and exports everywhere.
Letters: B batch, S tokens of all levels, M heads, D channels of a head, Q queries, L levels, P points.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

_BILINEAR, _ZEROS = 0, 0  # codes of the interpolation and padding mode in aten.grid_sampler_2d


def reference_forward(
    value: Tensor, spatial_shapes: Sequence[int], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """value (B, S, M, D), flat shapes (2 * L), locations (B, Q, M, L, P, 2), weights (B, Q, M, L, P) → (B, Q, M * D).

    Computes in the dtype of the locations and returns that of the value.
    """
    dtype, weights = value.dtype, _fold_heads(attention_weights)  # (B * M, Q, L, P)
    batch, queries, heads = sampling_locations.shape[:3]
    output = value.new_zeros((), dtype=sampling_locations.dtype)
    for level, (level_map, grid) in enumerate(_levels(value, spatial_shapes, sampling_locations)):
        sampled = functional.grid_sample(level_map, grid, "bilinear", "zeros", align_corners=False)  # (B * M, D, Q, P)
        output = output + (sampled * weights[:, None, :, level]).sum(-1)  # (B * M, D, Q)
    output = output.reshape(batch, heads * value.shape[-1], queries).transpose(1, 2)  # (B, Q, M * D)
    return output.to(dtype).contiguous()


def reference_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of value, locations and weights, each with the shape and dtype of its tensor."""
    (batch, tokens, heads, channels), queries = value.shape, sampling_locations.shape[1]
    grad = grad_output.to(sampling_locations.dtype).unflatten(-1, (heads, channels))  # (B, Q, M, D)
    grad = grad.permute(0, 2, 3, 1).reshape(batch * heads, channels, queries, 1)  # (B * M, D, Q, 1)
    weights = _fold_heads(attention_weights)
    grad_maps, grad_grids, grad_weights = [], [], []
    for level, (level_map, grid) in enumerate(_levels(value, spatial_shapes, sampling_locations)):
        sampled = functional.grid_sample(level_map, grid, "bilinear", "zeros", align_corners=False)
        grad_weights.append((sampled * grad).sum(1))  # (B * M, Q, P)
        grad_map, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
            grad * weights[:, None, :, level], level_map, grid, _BILINEAR, _ZEROS, False, [True, True]
        )
        grad_maps.append(grad_map.flatten(2))  # (B * M, D, H * W)
        grad_grids.append(2 * grad_grid)  # (B * M, Q, P, 2)
    grad_value = torch.cat(grad_maps, 2).reshape(batch, heads, channels, tokens).permute(0, 3, 1, 2)
    return (
        grad_value.to(value.dtype).contiguous(),
        _unfold_heads(torch.stack(grad_grids, 2), batch, heads).contiguous(),
        _unfold_heads(torch.stack(grad_weights, 2), batch, heads).contiguous(),
    )


def _fold_heads(per_query: Tensor) -> Tensor:
    """(B, Q, M, …) → (B * M, Q, …)"""
    return per_query.transpose(1, 2).flatten(0, 1)


def _unfold_heads(per_head: Tensor, batch: int, heads: int) -> Tensor:
    """(B * M, Q, …) → (B, Q, M, …)"""
    return per_head.unflatten(0, (batch, heads)).transpose(1, 2)


def _levels(
    value: Tensor, spatial_shapes: Sequence[int], sampling_locations: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each level the map (B * M, D, H, W) and the sampling grid (B * M, Q, P, 2) in [-1, 1]."""
    batch, _, heads, channels = value.shape
    grids = _fold_heads(2 * sampling_locations - 1)  # (B * M, Q, L, P, 2)
    start = 0
    for level in range(len(spatial_shapes) // 2):
        height, width = spatial_shapes[2 * level], spatial_shapes[2 * level + 1]
        tokens = value[:, start : start + height * width].to(sampling_locations.dtype)
        start += height * width
        level_map = tokens.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        yield level_map, grids[:, :, level]
