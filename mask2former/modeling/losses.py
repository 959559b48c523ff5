"""Losses and matching costs of masks, given as logits at sampled points (Mask2Former, section 3.3), and of pixels.

Letters: N masks, M targets, Q queries, P points (of all frames together where costs are meant), B batch, K classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mask2former.modeling.interfaces import Matched
from mask2former.modeling.registry import LOSS_REGISTRY

IGNORED = -1  # label of a pixel that trains nothing


def dice_losses(mask_logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return dice losses (..., N) in 0..1 of logits and targets (..., N, P), smoothed by one point.

    ``weights`` (..., N, P): 0 at points that do not count, else 1.
    """
    probs = mask_logits.sigmoid()
    if weights is not None:
        probs, targets = probs * weights, targets * weights
    overlap = (probs * targets).sum(-1)
    return 1 - (2 * overlap + 1) / (probs.sum(-1) + targets.sum(-1) + 1)


def sigmoid_ce_losses(mask_logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return binary cross-entropies (..., N), means over points that count, of logits and targets (..., N, P).

    ``weights`` (..., N, P): 0 at points that do not count, else 1.
    """
    losses = F.binary_cross_entropy_with_logits(mask_logits, targets, reduction="none")
    if weights is None:
        return losses.mean(-1)
    return (losses * weights).sum(-1) / weights.sum(-1).clamp(min=1)


@LOSS_REGISTRY.register(name="mask")
def mask_loss(matched: Matched) -> Tensor:
    """Return binary cross-entropies (L,) of matched masks at their points."""
    return matched.mean(sigmoid_ce_losses(matched.point_logits, matched.point_labels, matched.point_weights))


@LOSS_REGISTRY.register(name="dice")
def dice_loss(matched: Matched) -> Tensor:
    """Return dice losses (L,) of matched masks at their points."""
    return matched.mean(dice_losses(matched.point_logits, matched.point_labels, matched.point_weights))


def dice_costs(mask_logits: Tensor, targets: Tensor) -> Tensor:
    """Return dice losses (..., Q, M) of every pair of logits (..., Q, P) and targets (M, P)."""
    probs = mask_logits.sigmoid()
    overlap = probs @ targets.T  # (..., Q, M)
    return 1 - (2 * overlap + 1) / (probs.sum(-1, keepdim=True) + targets.sum(-1) + 1)


def sigmoid_ce_costs(mask_logits: Tensor, targets: Tensor) -> Tensor:
    """Return binary cross-entropies (..., Q, M), means over points, of logits (..., Q, P) and targets (M, P)."""
    # ce(x, t) = softplus(x) - x t: the first term knows no target and the second is one product.
    num_points = max(1, mask_logits.shape[-1])
    return (F.softplus(mask_logits).sum(-1, keepdim=True) - mask_logits @ targets.T) / num_points


def class_costs(class_logits: Tensor, labels: Tensor) -> Tensor:
    """Return negative class probabilities (..., Q, M) of logits (..., Q, K + 1) for target classes (M,)."""
    return -class_logits.softmax(-1)[..., labels]


def pixel_ce_loss(class_logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy, a scalar, of logits (B, K, H', W') for labels (B, H, W) that are not IGNORED.

    Logits may be larger than the labels at right and bottom. If every label is ignored, the loss is a zero with
    gradients.
    """
    height, width = labels.shape[-2:]
    logits = class_logits[..., :height, :width]
    total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)
