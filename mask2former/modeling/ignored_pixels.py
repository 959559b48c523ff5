"""Pixels that train nothing: where ground truth is unknown, or a crowd is not divided into objects.

Letters: L prediction layers, B batch, T frames, Q queries, N targets of an image, M targets of all images, P points,
H W size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.modeling.prediction import QueryPrediction, mask_factors
from mask2former.ops import point_sample

_CERTAIN = 1e4  # a logit beyond those that a model gives


def known_points(ignored: Tensor, points_xy: Tensor) -> Tensor:
    """Whether no pixel of which a point is mixed is ignored, (TP,), for maps (T, H, W) and points (1, P, 2)."""
    return (point_sample(ignored[None].float(), points_xy)[0] == 0).flatten()


def cover_ignored(predictions: Sequence[QueryPrediction], image: int, ignored: Tensor, *, num_points: int) -> Tensor:
    """Whether more than half of each query's mask is ignored (T, H, W), or the whole image is: (L, Q) bool."""
    device = ignored.device
    points_xy = torch.rand(1, num_points, 2, dtype=torch.float32, device=device)
    is_ignored = (point_sample(ignored[None].float(), points_xy)[0] > 0.5).flatten()  # (TP,)
    is_mostly_ignored = []
    for embeds, points in mask_factors(predictions, image, points_xy):
        is_inside = embeds @ points > 0  # (R, TP)
        is_mostly_ignored.append(2 * (is_inside & is_ignored).sum(-1) > is_inside.sum(-1))
    return torch.cat(is_mostly_ignored).view(len(predictions), -1) | ignored.all()


def ignored_by_target(targets: Sequence[dict[str, Tensor]]) -> Tensor | None:
    """The ignored pixels (M, T, H, W) of each target's image; None where no image has any."""
    if not any("ignored" in target for target in targets):
        return None
    maps = [(target.get("ignored"), target["masks"]) for target in targets]
    return torch.cat(
        [torch.zeros_like(masks) if ignored is None else ignored.expand_as(masks) for ignored, masks in maps]
    )


def certain_where_ignored(maps: Tensor, ignored: Tensor) -> Tensor:
    """Logits (LMT, 1, h, w), high where all pixels (M, T, H, W) of a cell are ignored: no points are drawn there.

    What is not trained stays uncertain, and would draw most of them.
    """
    has_known = F.adaptive_max_pool2d((~ignored).flatten(0, 1)[:, None].float(), maps.shape[-2:])  # (MT, 1, h, w)
    return maps.masked_fill((has_known == 0).repeat(len(maps) // len(has_known), 1, 1, 1), _CERTAIN)
