"""The set criterion: match targets with queries, then class, mask and dice losses of every prediction layer.

Mask2Former, section 3.3. All layers are computed together. Masks are computed for matched queries only and compared at
points that are drawn for each mask, most of them where its logit is near zero.

Letters: L prediction layers, B batch, T frames, Q queries, N targets of an image, M targets of all images, K classes, P
points, H W size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.config.registry import build_callable
from mask2former.distributed import average, get_world_size
from mask2former.errors import ConfigError, NonFiniteError
from mask2former.modeling.ignored_pixels import certain_where_ignored, cover_ignored, ignored_by_target
from mask2former.modeling.interfaces import Loss, Matched, Matcher
from mask2former.modeling.losses import dice_loss, mask_loss
from mask2former.modeling.prediction import QueryPrediction, chosen_mask_logits
from mask2former.modeling.registry import CRITERION_REGISTRY, LOSS_REGISTRY
from mask2former.ops import point_sample, sample_uncertain_points

PER_PROCESS, GLOBAL = LOSS_NORMS = ("per_process", "global")

_LAYER = re.compile(r"_\d+$")  # suffix of the losses of earlier layers


@CRITERION_REGISTRY.register()
class SetCriterion(nn.Module):
    """Unweighted losses of all prediction layers: cross-entropy of classes, and the mask losses of ``losses``."""

    empty_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        matcher: Matcher,
        loss_weights: Mapping[str, float],
        no_object_weight: float,
        num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
        losses: Mapping[str, Loss] | None = None,
        loss_norm: str = PER_PROCESS,
    ) -> None:
        """``loss_weights`` holds the weight of ``loss_ce``, and of ``loss_NAME`` for each of ``losses``.

        ``losses``: by default mask and dice.
        ``loss_norm``: what several processes divide their losses by, see ``_norms``.
        """
        super().__init__()
        if loss_norm not in LOSS_NORMS:
            raise ConfigError(f"MODEL.MASK_FORMER.LOSS_NORM must be {' or '.join(LOSS_NORMS)}, found {loss_norm!r}")
        self.loss_norm = loss_norm
        self.losses = {"mask": mask_loss, "dice": dice_loss} if losses is None else dict(losses)
        self.num_classes = num_classes
        self.matcher = matcher
        self.loss_weights = dict(loss_weights)
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = no_object_weight
        self.register_buffer("empty_weight", empty_weight)

    @classmethod
    def from_config(cls, cfg: Any, matcher: Matcher) -> dict[str, Any]:
        """Return weights and point counts of MODEL.MASK_FORMER, and the registered losses of LOSSES."""
        options = cfg.MODEL.MASK_FORMER
        weights = {
            "ce": options.CLASS_WEIGHT,
            "mask": options.MASK_WEIGHT,
            "dice": options.DICE_WEIGHT,
            **parse_losses(options.LOSSES),
        }
        return {
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "matcher": matcher,
            "loss_weights": {f"loss_{name}": weight for name, weight in weights.items()},
            "losses": {name: build_callable(LOSS_REGISTRY.lookup(name), cfg) for name in weights if name != "ce"},
            "no_object_weight": options.NO_OBJECT_WEIGHT,
            "num_points": options.TRAIN_NUM_POINTS,
            "oversample_ratio": options.OVERSAMPLE_RATIO,
            "importance_sample_ratio": options.IMPORTANCE_SAMPLE_RATIO,
            "loss_norm": options.LOSS_NORM,
        }

    def forward(
        self, predictions: Sequence[QueryPrediction], targets: Sequence[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return scalar losses ``loss_ce``, ``loss_mask``, … of the last layer, and ``loss_ce_0``, … of the others.

        Targets, one for each image: ``labels`` (N,) in 0..K-1 and ``masks`` (N, [T,] H, W) bool, padded alike, and if
        some pixels are not trained on, ``ignored`` (T, H, W) bool.
        """
        targets = [{**target, "masks": with_frames(target["masks"])} for target in targets]
        device = predictions[0].class_logits.device
        with torch.autocast(device.type, enabled=False):
            table = self._match(predictions, targets).to(device)  # (L, M)
            class_losses, class_weights = self.class_losses(predictions, targets, table)
        points = self.masks_at_points(predictions, targets, table)
        class_norms, num_masks = self._norms(class_weights, table.shape[1])
        point_logits, point_labels, weights = points
        matched = Matched(predictions, targets, table, point_logits, point_labels, num_masks, weights)
        layers = {"loss_ce": class_losses / class_norms}
        layers.update({f"loss_{name}": loss(matched) for name, loss in self.losses.items()})
        last = len(predictions) - 1
        losses = {name: values[last] for name, values in layers.items()}
        for layer in range(last):
            losses.update({f"{name}_{layer}": values[layer] for name, values in layers.items()})
        return losses

    def weight(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return each loss times its weight; a layer suffix is ignored."""
        return {name: loss * self.loss_weights[_LAYER.sub("", name)] for name, loss in losses.items()}

    def _match(self, predictions: Sequence[QueryPrediction], targets: Sequence[dict[str, Tensor]]) -> Tensor:
        try:
            return self.matcher(predictions, targets)
        except NonFiniteError:
            # The other processes wait for this one's share of the sums.
            self._norms(torch.zeros(len(predictions), device=predictions[0].class_logits.device), 0)
            raise

    def _norms(self, class_weights: Tensor, num_masks: int) -> tuple[Tensor, Tensor]:
        """Return what class losses (L,) and mask losses, a scalar, are divided by; all processes must call this alike.

        Per process: the class losses by this process's sum of weights, masks by the mean number over processes, at
        least 1. Global: both by means over processes, so that the mean of their losses is the loss of one process
        with all images.
        """
        means = average(torch.cat([class_weights, class_weights.new_full((1,), num_masks)]))
        if self.loss_norm == PER_PROCESS:
            class_norms, least = class_weights, 1.0
        else:
            class_norms, least = means[:-1], 1 / get_world_size()
        # None of the weights is left where all queries lie on ignored pixels.
        return class_norms.clamp(min=torch.finfo(class_norms.dtype).tiny), means[-1].clamp(min=least)

    def class_losses(
        self, predictions: Sequence[QueryPrediction], targets: Sequence[dict[str, Tensor]], table: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return sums (L,) over all queries of weighted cross-entropies, and of their weights.

        Unmatched queries have the class "no object".
        """
        logits = torch.stack([prediction.class_logits for prediction in predictions]).float()  # (L, B, Q, K + 1)
        num_layers, num_batch, num_queries = logits.shape[:3]
        labels = torch.cat([target["labels"] for target in targets])
        images = torch.tensor([b for b, target in enumerate(targets) for _ in target["labels"]], dtype=torch.long)
        layers = torch.arange(num_layers, device=table.device)[:, None]
        # Unmatched targets write to a spare query, which is cut off: no search for them, no wait for the device.
        classes = labels.new_full((num_layers, num_batch, num_queries + 1), self.num_classes)
        classes[layers, images.to(table.device), table.where(table >= 0, num_queries)] = labels.expand_as(table)
        classes = classes[..., :num_queries]
        weights = self.empty_weight.float()  # of a model in half precision, too, the losses are in full
        losses = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), weights, reduction="none")
        losses, weights = losses.view_as(classes), weights[classes]
        if any("ignored" in target for target in targets):
            is_trained = (classes != self.num_classes) | ~self._cover_ignored(predictions, targets)
            losses, weights = losses.where(is_trained, 0), weights * is_trained
        return losses.flatten(1).sum(1), weights.flatten(1).sum(1)

    @torch.no_grad()
    def _cover_ignored(self, predictions: Sequence[QueryPrediction], targets: Sequence[dict[str, Tensor]]) -> Tensor:
        """Return whether the mask of a query lies mostly on ignored pixels, (L, B, Q).

        It may be right, no one knows.
        """
        columns = []
        for image, target in enumerate(targets):
            if "ignored" in target:
                columns.append(cover_ignored(predictions, image, target["ignored"], num_points=self.num_points))
            else:
                logits = predictions[0].class_logits
                columns.append(torch.zeros(len(predictions), logits.shape[1], dtype=torch.bool, device=logits.device))
        return torch.stack(columns, dim=1)

    def masks_at_points(
        self, predictions: Sequence[QueryPrediction], targets: Sequence[dict[str, Tensor]], table: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return logits of matched masks, labels of their targets and weights at the same points, each (L, M, T, P)."""
        queries = table.clamp(min=0).split([len(target["labels"]) for target in targets], dim=1)
        logits = chosen_mask_logits(predictions, queries)
        masks = torch.cat([target["masks"] for target in targets])  # (M, T, H, W)
        return self._at_points(torch.cat(logits, 1).float(), masks, ignored_by_target(targets))

    def _at_points(self, logits: Tensor, masks: Tensor, ignored: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return logits, target labels and weights at points of each mask, all (L, M, T, P).

        Inputs are logits (L, M, T, h, w) and labels of targets (M, T, H, W).
        """
        shape = (*logits.shape[:3], self.num_points)
        maps = logits.flatten(0, 2)[:, None]  # (LMT, 1, h, w)
        if len(maps) == 0:  # the empty product keeps the gradients of all parameters connected
            return maps.sum() + maps.new_zeros(shape), maps.new_zeros(shape), None
        with torch.no_grad():
            points_xy = sample_uncertain_points(
                maps.detach() if ignored is None else certain_where_ignored(maps.detach(), ignored),
                num_points=self.num_points,
                oversample_ratio=self.oversample_ratio,
                importance_sample_ratio=self.importance_sample_ratio,
            )  # (LMT, P, 2)
            # A target is read at the points of all layers at once: (L, MT, P, 2) -> (MT, LP, 2)
            of_targets = points_xy.unflatten(0, (shape[0], -1)).transpose(0, 1).flatten(1, 2)
            read = [masks, *([] if ignored is None else [ignored])]
            at_points = [point_sample(values.flatten(0, 1)[:, None].float(), of_targets) for values in read]
            labels, *ignored_share = (
                values.view(shape[1], shape[2], shape[0], shape[3]).permute(2, 0, 1, 3) for values in at_points
            )  # (MT, 1, LP) -> (L, M, T, P)
            # A point counts where none of the pixels that it is mixed of is ignored.
            weights = (ignored_share[0] == 0).to(labels.dtype) if ignored_share else None
        return point_sample(maps, points_xy).view(shape), labels, weights


def parse_losses(entries: Sequence[Any]) -> dict[str, float]:
    """Return the weights of MODEL.MASK_FORMER.LOSSES by name.

    Raises:
        ConfigError: an entry is not [name, weight], or a name ends like those of earlier layers' losses.
    """
    try:
        weights = {str(name): float(weight) for name, weight in entries}
    except (TypeError, ValueError) as error:
        raise ConfigError(f"MODEL.MASK_FORMER.LOSSES: expected [name, weight] entries, found {entries}") from error
    for name in weights:
        if _LAYER.search(name):
            raise ConfigError(f"MODEL.MASK_FORMER.LOSSES: {name}: a name must not end like the number of a layer")
    return weights


def with_frames(masks: Tensor) -> Tensor:
    """Return masks (N, T, H, W), adding T = 1 to (N, H, W)."""
    return masks.unsqueeze(1) if masks.ndim == 3 else masks
