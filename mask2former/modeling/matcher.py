"""Assignment of targets to queries at least cost (DETR, section 3.1; sampled points: Mask2Former, section 3.3).

Letters: L prediction layers, B batch, T frames, Q queries, N targets of an image, M targets of all images, K classes,
C channels, P points, H W size.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mask2former.errors import NonFiniteError
from mask2former.modeling.ignored_pixels import known_points
from mask2former.modeling.losses import class_costs, dice_costs, sigmoid_ce_costs
from mask2former.modeling.prediction import QueryPrediction, mask_factors
from mask2former.modeling.registry import MATCHER_REGISTRY
from mask2former.ops import point_sample

UNMATCHED = -1

_logger = logging.getLogger(__name__)


@MATCHER_REGISTRY.register()
class HungarianMatcher:
    """Matches every target with one query, in every prediction layer, by class, mask and dice cost.

    Masks are compared at random points that the layers share and the images do not.
    """

    def __init__(self, *, class_weight: float, mask_weight: float, dice_weight: float, num_points: int) -> None:
        if class_weight == mask_weight == dice_weight == 0:
            raise ValueError("matching needs a cost: class, mask and dice weight are all zero")
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.num_points = num_points
        self._has_warned = False

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        """Return weights and number of points of MODEL.MASK_FORMER, the same as those of the losses."""
        options = cfg.MODEL.MASK_FORMER
        return {
            "class_weight": options.CLASS_WEIGHT,
            "mask_weight": options.MASK_WEIGHT,
            "dice_weight": options.DICE_WEIGHT,
            "num_points": options.TRAIN_NUM_POINTS,
        }

    @torch.no_grad()
    def __call__(self, predictions: Sequence[QueryPrediction], targets: Sequence[dict[str, Tensor]]) -> Tensor:
        """Return the query of each target: (L, M) int64 on the host, targets of all images one after another.

        Targets hold ``labels`` (N,), ``masks`` (N, T, H, W) and optionally ``ignored`` (T, H, W), pixels at which masks
        are not compared. A query is assigned at most once in an image; if an image has more targets than queries, those
        of highest cost stay ``UNMATCHED``, with one warning.

        Raises:
            NonFiniteError: a cost is not finite; names the layer, the image of the batch and the tensor.
        """
        device_type = predictions[0].class_logits.device.type
        with torch.autocast(device_type, enabled=False):
            costs = [self.costs(predictions, image, target) for image, target in enumerate(targets)]
        self._warn_of_many(predictions[0].class_logits.shape[1], max(len(target["labels"]) for target in targets))
        # One copy to the host for all layers and images.
        on_host = torch.cat([cost.flatten() for cost in costs]).cpu().split([cost.numel() for cost in costs])
        tables = [
            _assign(values.view(cost.shape).numpy(), predictions, image)
            for image, (cost, values) in enumerate(zip(costs, on_host, strict=True))
        ]
        return torch.from_numpy(np.concatenate(tables, axis=1))

    def _warn_of_many(self, num_queries: int, num_targets: int) -> None:
        if num_targets > num_queries and not self._has_warned:
            self._has_warned = True
            _logger.warning(
                "an image has %d objects and the model %d queries: in each layer the %d costliest to match train "
                "nothing. More queries: MODEL.MASK_FORMER.NUM_OBJECT_QUERIES (said once)",
                num_targets,
                num_queries,
                num_targets - num_queries,
            )

    def costs(self, predictions: Sequence[QueryPrediction], image: int, target: dict[str, Tensor]) -> Tensor:
        """Return costs (L, Q, N) float32 of assigning each query to each target of one image."""
        labels, masks = target["labels"], target["masks"]
        class_logits = torch.stack([prediction.class_logits[image] for prediction in predictions]).float()
        if len(labels) == 0:
            return class_logits.new_zeros((*class_logits.shape[:2], 0))
        points_xy = torch.rand(1, self.num_points, 2, dtype=torch.float32, device=class_logits.device)
        masks = masks.flatten(0, 1)[None].float()  # (1, NT, H, W)
        mask_targets = point_sample(masks, points_xy)[0].view(len(labels), -1)  # (N, TP)
        is_known = known_points(target["ignored"], points_xy) if "ignored" in target else slice(None)
        mask_costs = [
            self._mask_costs(embeds @ points[:, is_known], mask_targets[:, is_known])
            for embeds, points in mask_factors(predictions, image, points_xy)
        ]
        costs = self.class_weight * class_costs(class_logits, labels)  # (L, Q, N)
        return costs + torch.cat(mask_costs).view_as(costs)

    def _mask_costs(self, mask_logits: Tensor, mask_targets: Tensor) -> Tensor:
        """Return costs (R, N) of rows of logits (R, TP) for targets (N, TP)."""
        mask_costs = self.mask_weight * sigmoid_ce_costs(mask_logits, mask_targets)
        return mask_costs + self.dice_weight * dice_costs(mask_logits, mask_targets)


def _assign(costs: np.ndarray, predictions: Sequence[QueryPrediction], image: int) -> np.ndarray:
    """Return the query of each target, (L, N) int64, for the costs (L, Q, N) of one image."""
    if not np.isfinite(costs).all():
        raise NonFiniteError(_describe_non_finite(costs, predictions, image))
    table = np.full((costs.shape[0], costs.shape[2]), UNMATCHED, dtype=np.int64)
    for row, layer_costs in zip(table, costs):
        queries, targets = linear_sum_assignment(layer_costs)
        row[targets] = queries
    return table


def _describe_non_finite(costs: np.ndarray, predictions: Sequence[QueryPrediction], image: int) -> str:
    layer = int(np.flatnonzero(~np.isfinite(costs).all(axis=(1, 2)))[0])
    prediction = predictions[layer]
    parts = {
        "class logits": prediction.class_logits[image],
        "mask embeddings": prediction.mask_embed[image],
        "mask features": prediction.mask_features[image],
    }
    broken = [name for name, tensor in parts.items() if not tensor.isfinite().all()]
    where = " and ".join(broken) or "masks (their product overflows)"
    return (
        f"matching costs must be finite: found a non-finite value in the {where} of prediction layer {layer} "
        f"of {len(predictions)} (counted from 0), image {image} of the batch"
    )
