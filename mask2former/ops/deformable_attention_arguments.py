"""What multi-scale deformable attention takes: checks of its arguments, and how C functions are told their sizes.

Letters: B batch, S tokens of all levels, M heads, D channels of a head, Q queries, L levels, P points.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Shapes = Sequence[tuple[int, int]] | Sequence[int] | Tensor

MAX_TOKENS = 2**30  # the kernels' pixel indices are 32-bit
_HALF_DTYPES = (torch.float16, torch.bfloat16)


def flatten_shapes(spatial_shapes: Shapes) -> list[int]:
    """Height and width of every level, one after the other."""
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
    """Half-precision weights beside float32 locations become float32."""
    if attention_weights.dtype in _HALF_DTYPES and sampling_locations.dtype == torch.float32:
        return attention_weights.float()
    return attention_weights


def check_arguments(
    value: Tensor, spatial_shapes: Sequence[int], sampling_locations: Tensor, attention_weights: Tensor
) -> None:
    """Raises ValueError where shapes, dtypes or devices do not fit together."""
    check_shapes(value, spatial_shapes, sampling_locations, attention_weights)
    check_dtypes(value, sampling_locations, attention_weights)


def check_shapes(
    value: Tensor, spatial_shapes: Sequence[int], sampling_locations: Tensor, attention_weights: Tensor
) -> None:
    """The same for shapes alone; offsets and logits have those of locations and weights."""
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
    """Raises ValueError where centres (Q, 2) do not fit offsets (B, Q, M, L, P, 2)."""
    if centres.shape != (offsets.shape[1], 2):
        raise ValueError(f"centres must have shape ({offsets.shape[1]}, 2), got {tuple(centres.shape)}")


def check_dtypes(value: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> None:
    """Raises ValueError where dtypes or devices do not fit together."""
    if value.dtype not in (torch.float32, torch.float64, *_HALF_DTYPES):
        raise ValueError(f"value must be float32, float64, bfloat16 or float16, got {value.dtype}")
    expected = torch.float64 if value.dtype == torch.float64 else torch.float32
    for name, tensor in (("sampling_locations", sampling_locations), ("attention_weights", attention_weights)):
        if tensor.dtype != expected:
            raise ValueError(f"{name} must be {expected} for a value of {value.dtype}, got {tensor.dtype}")
        if tensor.device != value.device:
            raise ValueError(f"{name} must be on the device of value ({value.device}), got {tensor.device}")


def check_grad_output(grad_output: Tensor, value: Tensor, sampling_locations: Tensor) -> None:
    """Raises ValueError where the gradient is not like the output."""
    batch, _, heads, channels = value.shape
    expected = (batch, sampling_locations.shape[1], heads * channels)
    if grad_output.shape != expected or grad_output.dtype != value.dtype or grad_output.device != value.device:
        raise ValueError(
            f"grad_output must be {expected} of {value.dtype} on {value.device}, "
            f"got {tuple(grad_output.shape)} of {grad_output.dtype} on {grad_output.device}"
        )


def sizes_of(value: Tensor, sampling_locations: Tensor) -> tuple[int, ...]:
    """B, S, M, D, Q, L, P as the C functions take them."""
    _, queries, _, levels, points, _ = sampling_locations.shape
    return (*value.shape, queries, levels, points)


def is_empty(output: Tensor, locations: Tensor) -> bool:
    """Whether there is nothing to compute; the kernels need something."""
    return output.numel() == 0 or locations.numel() == 0


def output_shape(value: Tensor, sampling_locations: Tensor) -> tuple[int, int, int]:
    """(B, Q, M * D)."""
    return value.shape[0], sampling_locations.shape[1], value.shape[2] * value.shape[3]


def shape_array(spatial_shapes: Sequence[int]) -> Any:
    """Integers as C functions take them."""
    return (ctypes.c_int64 * len(spatial_shapes))(*spatial_shapes)
