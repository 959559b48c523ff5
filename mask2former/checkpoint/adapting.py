"""Resize tensors to the model's shapes: relative position tables and queries."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Shapes = tuple[tuple[int, ...], tuple[int, ...]]

_POSITION_TABLE = re.compile(r"\.relative_position_bias_table$")
_QUERIES = re.compile(r"\.predictor\.query_(feat|embed)\.weight$")


def adapt_shapes(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], *, resize_queries: bool
) -> tuple[dict[str, Tensor], dict[str, Shapes]]:
    """Return the tensors, resized where that is possible, and the shapes (theirs, ours) of the resized ones."""
    result, adapted = dict(tensors), {}
    for name, tensor in tensors.items():
        ours = own.get(name)
        if ours is None or ours.shape == tensor.shape or ours.ndim != 2 or tensor.ndim != 2:
            continue
        if ours.shape[1] != tensor.shape[1]:
            continue  # other channels or heads: another network
        if _POSITION_TABLE.search(name) and _is_square(len(tensor)) and _is_square(len(ours)):
            result[name] = resize_position_table(tensor, len(ours))
        elif resize_queries and _QUERIES.search(name):
            result[name] = copy_queries(tensor, ours)
        else:
            continue
        adapted[name] = (tuple(tensor.shape), tuple(ours.shape))
    return result, adapted


def resize_position_table(table: Tensor, length: int) -> Tensor:
    """Return a table of (2 w - 1)² offsets by M heads, interpolated bicubically to ``length`` offsets.

    ``length`` is a square, too.
    """
    old, new = math.isqrt(len(table)), math.isqrt(length)
    grid = table.float().T.reshape(1, -1, old, old)  # (1, M, 2w - 1, 2w - 1)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return grid.flatten(2)[0].T.to(table.dtype)


def copy_queries(queries: Tensor, ours: Tensor) -> Tensor:
    """Return rows (N, C) of as many queries as both have, then the model's own initial ones. Queries have no order."""
    count = min(len(queries), len(ours))
    return torch.cat((queries[:count].to(ours), ours[count:]))


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number
