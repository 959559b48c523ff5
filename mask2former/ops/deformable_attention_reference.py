"""Multi-scale deformable attention in plain PyTorch, the definition the native kernels are tested against.

Deformable DETR (arXiv:2010.04159), equation 3. Runs on every device and exports everywhere. Checks arguments, too.
Letters: B batch, S tokens of all levels, M heads, D channels of a head, Q queries, L levels, P points.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Shapes = Sequence[tuple[int, int]] | Sequence[int] | Tensor

_HALF_DTYPES = (torch.float16, torch.bfloat16)
_BILINEAR, _ZEROS = 0, 0  # codes of the interpolation and padding mode in aten.grid_sampler_2d


def flatten_shapes(spatial_shapes: Shapes) -> list[int]:
    """Return the height and width of every level, one after the other."""
    if isinstance(spatial_shapes, Tensor):
        if spatial_shapes.is_floating_point():
            raise ValueError(f"spatial_shapes must hold integers, got a tensor of {spatial_shapes.dtype}")
        return spatial_shapes.flatten().tolist()
    flat: list[Any] = []
    for item in spatial_shapes:
        if isinstance(item, (tuple, list)):
            flat.extend(item)
        else:
            flat.append(item)
    # Where torch.jit traces, sizes are tensors, which an operator does not take for integers.
    return [int(size) if isinstance(size, Tensor) else size for size in flat]


def promote_weights(attention_weights: Tensor, sampling_locations: Tensor) -> Tensor:
    """Return attention weights in float32 if they have half precision and the locations float32."""
    if attention_weights.dtype in _HALF_DTYPES and sampling_locations.dtype == torch.float32:
        return attention_weights.float()
    return attention_weights


def check_arguments(
    value: Tensor, spatial_shapes: Sequence[int], sampling_locations: Tensor, attention_weights: Tensor
) -> None:
    """Raise ValueError if shapes, dtypes or devices do not fit together."""
    check_shapes(value, spatial_shapes, sampling_locations, attention_weights)
    check_dtypes(value, sampling_locations, attention_weights)


def check_shapes(
    value: Tensor, spatial_shapes: Sequence[int], sampling_locations: Tensor, attention_weights: Tensor
) -> None:
    """Raise ValueError if shapes do not fit together; offsets and logits have those of locations and weights."""
    if value.ndim != 4:
        raise ValueError(f"value must have shape (B, S, M, D), got {tuple(value.shape)}")
    if len(spatial_shapes) < 2 or len(spatial_shapes) % 2:
        raise ValueError(f"spatial_shapes must hold (height, width) of each level, got {list(spatial_shapes)}")
    heights, widths = spatial_shapes[0::2], spatial_shapes[1::2]
    if any(size < 1 for size in spatial_shapes):
        raise ValueError(f"spatial_shapes must be positive, got {list(spatial_shapes)}")
    batch, tokens, heads, _ = value.shape
    if (area := sum(h * w for h, w in zip(heights, widths, strict=True))) != tokens:
        raise ValueError(f"value has {tokens} tokens, but spatial_shapes {list(spatial_shapes)} have {area} pixels")
    found = tuple(sampling_locations.shape)
    if len(found) != 6 or found[0] != batch or found[2] != heads or found[3] != len(heights) or found[5] != 2:
        expected = f"({batch}, Q, {heads}, {len(heights)}, P, 2)"
        raise ValueError(f"sampling_locations must have shape {expected}, got {found}")
    if attention_weights.shape != found[:5]:
        raise ValueError(f"attention_weights must have shape {found[:5]}, got {tuple(attention_weights.shape)}")


def check_centres(centres: Tensor, offsets: Tensor) -> None:
    """Raise ValueError if centres (Q, 2) do not fit offsets (B, Q, M, L, P, 2)."""
    if centres.shape != (offsets.shape[1], 2):
        raise ValueError(f"centres must have shape ({offsets.shape[1]}, 2), got {tuple(centres.shape)}")


def check_dtypes(value: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> None:
    """Raise ValueError if dtypes or devices do not fit together."""
    if value.dtype not in (torch.float32, torch.float64, *_HALF_DTYPES):
        raise ValueError(f"value must be float32, float64, bfloat16 or float16, got {value.dtype}")
    expected = torch.float64 if value.dtype == torch.float64 else torch.float32
    for name, tensor in (("sampling_locations", sampling_locations), ("attention_weights", attention_weights)):
        if tensor.dtype != expected:
            raise ValueError(f"{name} must be {expected} for a value of {value.dtype}, got {tensor.dtype}")
        if tensor.device != value.device:
            raise ValueError(f"{name} must be on the device of value ({value.device}), got {tensor.device}")


def check_grad_output(grad_output: Tensor, value: Tensor, sampling_locations: Tensor) -> None:
    """Raise ValueError if the gradient differs from the output in shape, dtype or device."""
    batch, _, heads, channels = value.shape
    expected = (batch, sampling_locations.shape[1], heads * channels)
    if grad_output.shape != expected or grad_output.dtype != value.dtype or grad_output.device != value.device:
        raise ValueError(
            f"grad_output must be {expected} of {value.dtype} on {value.device}, "
            f"got {tuple(grad_output.shape)} of {grad_output.dtype} on {grad_output.device}"
        )


def output_shape(value: Tensor, sampling_locations: Tensor) -> tuple[int, int, int]:
    """Return (B, Q, M * D)."""
    return value.shape[0], sampling_locations.shape[1], value.shape[2] * value.shape[3]


def reference_forward(
    value: Tensor, spatial_shapes: Sequence[int], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Return the attention (B, Q, M * D) in the dtype of the value, computed in that of the locations.

    Args:
        value: (B, S, M, D).
        spatial_shapes: flat, (2 * L).
        sampling_locations: (B, Q, M, L, P, 2).
        attention_weights: (B, Q, M, L, P).
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
    """Return the gradients of value, locations and weights, each with the shape and dtype of its tensor."""
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
    """Map (B, Q, M, …) to (B * M, Q, …)."""
    return per_query.transpose(1, 2).flatten(0, 1)


def _unfold_heads(per_head: Tensor, batch: int, heads: int) -> Tensor:
    """Map (B * M, Q, …) to (B, Q, M, …)."""
    return per_head.unflatten(0, (batch, heads)).transpose(1, 2)


def _levels(
    value: Tensor, spatial_shapes: Sequence[int], sampling_locations: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each level the map (B * M, D, H, W) and the sampling grid (B * M, Q, P, 2) in [-1, 1]."""
    batch, _, heads, channels = value.shape
    grids = _fold_heads(2 * sampling_locations - 1)  # (B * M, Q, L, P, 2)
    start = 0
    for level in range(len(spatial_shapes) // 2):
        height, width = spatial_shapes[2 * level], spatial_shapes[2 * level + 1]
        tokens = value[:, start : start + height * width].to(sampling_locations.dtype)
        start += height * width
        level_map = tokens.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        yield level_map, grids[:, :, level]
