"""How far outputs and gradients of multi-scale deformable attention are from what they should be, and may be.

Letters: B batch, Q queries, M heads, L levels, P points, N pixels at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from benchmarks.comparison import largest_difference

# Relative to the largest value: sums of hundreds of products, and twice the rounding of one result in half precision.
LIMITS: Mapping[torch.dtype, float] = MappingProxyType(
    {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
)
GRADIENTS = ("value", "locations", "weights")
_NEAR_A_PIXEL = 1e-3  # in pixels; float32 places a point of a map of a thousand pixels by a tenth of that


def errors_of_gradients(
    found: Sequence[Tensor],
    expected: Sequence[Tensor],
    *,
    locations: Tensor,
    shapes: Sequence[tuple[int, int]],
    names: Sequence[str] = GRADIENTS,
) -> dict[str, float]:
    """Largest differences relative to the largest value; those of locations but for points at a pixel's centre."""
    is_smooth = is_between_pixels(locations, shapes)[..., None]
    pairs = [list(pair) for pair in zip(found, expected, strict=True)]
    # In the centre of a pixel the slope jumps: rounding decides which one it is.
    pairs[1] = [torch.where(is_smooth, gradient, 0) for gradient in pairs[1]]
    return {f"gradient of {name}": largest_difference(*pair) for name, pair in zip(names, pairs, strict=True)}


def is_between_pixels(locations: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """Whether points (B, Q, M, L, P, 2) are clearly between the centres of pixels in both directions."""
    sizes = torch.tensor([(w, h) for h, w in shapes], device=locations.device)[:, None]  # (L, 1, 2)
    places = locations.double() * sizes - 0.5
    return ((places - places.round()).abs() > _NEAR_A_PIXEL).all(-1)
