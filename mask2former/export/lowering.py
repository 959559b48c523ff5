"""What an exported graph computes multi-scale deformable and neighbourhood attention with, by target.

GridSample for ONNX Runtime and OpenVINO; gather for TensorRT, whose GridSample takes no maps in half precision with
float32 places; our own operator where torch runs the file.

Letters: B batch, S tokens of all levels, M heads, D channels of a head, Q queries, L levels, P points.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

from torch import Tensor

from mask2former.errors import ConfigError
from mask2former.ops.deformable_attention import deformable_operator
from mask2former.ops.deformable_attention_reference import reference_forward
from mask2former.ops.neighbourhood_attention import neighbourhood_operator
from mask2former.ops.neighbourhood_attention_reference import reference_forward as neighbourhood_forward

OPERATOR = "operator"


def gather_forward(
    value: Tensor, spatial_shapes: Sequence[int], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Return the attention (B, Q, M * D) as ``reference_forward`` does, by gathering the four neighbours of a place.

    Nothing that is gathered from or into has more than three axes.
    """
    num_batch, _, num_heads, channels = value.shape
    num_queries, num_points = sampling_locations.shape[1], sampling_locations.shape[4]
    maps = value.to(sampling_locations.dtype).permute(0, 2, 3, 1).flatten(0, 1)  # (BM, D, S)
    places = sampling_locations.transpose(1, 2).flatten(0, 1)  # (BM, Q, L, P, 2)
    weights = attention_weights.transpose(1, 2).flatten(0, 1)  # (BM, Q, L, P)
    output = maps.new_zeros(())
    start = 0
    for level in range(len(spatial_shapes) // 2):
        height, width = spatial_shapes[2 * level], spatial_shapes[2 * level + 1]
        level_map = maps[..., start : start + height * width]  # (BM, D, HW)
        start += height * width
        x, y = (places[:, :, level, :, axis].flatten(1) * side - 0.5 for axis, side in ((0, width), (1, height)))
        share = weights[:, :, level].flatten(1)  # (BM, QP)
        for row, row_share in _neighbours(y, height):
            for column, column_share in _neighbours(x, width):
                index = (row * width + column)[:, None].expand(-1, channels, -1)  # (BM, D, QP)
                output = output + level_map.gather(2, index) * (share * row_share * column_share)[:, None]
    output = output.unflatten(2, (num_queries, num_points)).sum(3)  # (BM, D, Q)
    output = output.view(num_batch, num_heads * channels, num_queries).transpose(1, 2)
    return output.to(value.dtype).contiguous()


def _neighbours(place: Tensor, length: int) -> list[tuple[Tensor, Tensor]]:
    """Return index and share of the pixels before and after a place; outside the map the share is 0."""
    before = place.floor()
    found = []
    for pixel, share in ((before, before + 1 - place), (before + 1, place - before)):
        is_inside = (pixel >= 0) & (pixel <= length - 1)
        found.append((pixel.clamp(min=0).minimum(pixel.new_full((), length - 1)).long(), share * is_inside))
    return found


SAMPLINGS: Mapping[str, Callable[..., Tensor] | None] = MappingProxyType(
    {"grid_sample": reference_forward, "gather": gather_forward, OPERATOR: None}
)


@contextlib.contextmanager
def lowered_operators(sampling: str) -> Iterator[None]:
    """Compute attention in the block by what ``sampling`` names; neighbourhood attention then gathers, too.

    Raises:
        ConfigError: there is no such name.
    """
    if sampling not in SAMPLINGS:
        raise ConfigError(f"--sampling: expected one of {', '.join(SAMPLINGS)}, found {sampling!r}")
    neighbourhood = None if sampling == OPERATOR else neighbourhood_forward
    with deformable_operator.replaced(SAMPLINGS[sampling]), neighbourhood_operator.replaced(neighbourhood):
        yield
