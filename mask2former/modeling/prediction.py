"""The prediction of one layer: class logits, and masks in factored form.

A mask is the product of a query's mask embedding with per-pixel mask features (Mask2Former, section 3.2). The product
is computed only where it is needed: full maps of all queries are by far the largest tensors of the model.

Letters: L prediction layers, B batch, T frames, Q queries, M chosen queries, K classes, C channels,
P points, H W size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mask2former.ops import multiply_maps, point_sample

_BLOCK_VALUES = 1 << 22  # logits that are held at a time: memory does not grow with the layers


class QueryPrediction(NamedTuple):
    """class_logits (B, Q, K + 1), the last is "no object"; mask_embed (B, Q, C); mask_features (B, T, C, H, W)."""

    class_logits: Tensor
    mask_embed: Tensor
    mask_features: Tensor

    def mask_logits(self) -> Tensor:
        """Return the mask logits (B, Q, T, H, W) of all queries."""
        return multiply_masks(self.mask_embed, self.mask_features)

    @classmethod
    def from_logits(cls, class_logits: Tensor, mask_logits: Tensor) -> QueryPrediction:
        """Return a prediction from class logits (B, Q, K + 1) and full mask logits (B, Q, [T,] H, W).

        The mask logits become mask features of Q channels.
        """
        if mask_logits.ndim == 4:
            mask_logits = mask_logits.unsqueeze(2)
        num_batch, num_queries = mask_logits.shape[:2]
        identity = torch.eye(num_queries, dtype=mask_logits.dtype, device=mask_logits.device)
        return cls(class_logits, identity.expand(num_batch, -1, -1), mask_logits.transpose(1, 2))


def multiply_masks(mask_embed: Tensor, mask_features: Tensor) -> Tensor:
    """Return the mask logits (B, Q, T, H, W) of embeddings (B, Q, C) and features (B, T, C, H, W)."""
    height, width = mask_features.shape[-2:]
    logits = multiply_maps(mask_embed[:, None], mask_features.flatten(3))  # (B, T, Q, HW)
    return logits.transpose(1, 2).unflatten(-1, (height, width))  # (B, Q, T, H, W)


def share_features(predictions: Sequence[QueryPrediction]) -> bool:
    """Return whether all layers have the same mask features, so that they need to be processed only once."""
    return all(prediction.mask_features is predictions[0].mask_features for prediction in predictions)


def chosen_mask_logits(predictions: Sequence[QueryPrediction], queries: Sequence[Tensor]) -> list[Tensor]:
    """Yield for each image the mask logits (L, M, T, H, W) of its chosen queries (L, M) in every layer."""
    num_layers = 1 if share_features(predictions) else len(predictions)
    # By images at once: the gradients of slices would each be written into zeros of the size of the whole.
    features = [prediction.mask_features.split(1) for prediction in predictions[:num_layers]]
    embeds = torch.stack([prediction.mask_embed for prediction in predictions], 1)  # (B, L, Q, C)
    logits = []
    for image, (chosen_queries, embed) in enumerate(zip(queries, embeds, strict=True)):
        index = chosen_queries[..., None].expand(-1, -1, embed.shape[-1])
        chosen = embed.gather(1, index).unflatten(0, (num_layers, -1)).flatten(1, 2)  # (1, L M, C) or (L, M, C)
        layers = [multiply_masks(rows[None], maps[image])[0] for rows, maps in zip(chosen, features, strict=True)]
        logits.append(torch.cat(layers).unflatten(0, chosen_queries.shape))
    return logits


def mask_factors(
    predictions: Sequence[QueryPrediction], image: int, points_xy: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Embeddings (R, C) and features at points (C, TP), whose products are mask logits; R adds up to L Q.

    Features are sampled first and multiplied after, once for all layers that share them.
    """
    embeds = torch.stack([prediction.mask_embed[image] for prediction in predictions]).float()  # (L, Q, C)
    groups = embeds.flatten(0, 1)[None] if share_features(predictions) else embeds
    for rows, prediction in zip(groups, predictions):
        points = _features_at_points(prediction, image, points_xy)
        for block in rows.split(max(1, _BLOCK_VALUES // points.shape[1])):
            yield block, points


def _features_at_points(prediction: QueryPrediction, image: int, points_xy: Tensor) -> Tensor:
    features = prediction.mask_features[image].float()  # (T, C, H, W)
    points = point_sample(features, points_xy.expand(len(features), -1, -1))  # (T, C, P)
    return points.transpose(0, 1).flatten(1)  # (C, TP)
