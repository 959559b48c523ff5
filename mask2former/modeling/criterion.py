"""The set criterion: match targets with queries, then class, mask and dice losses of every prediction layer.

Mask2Former, section 3.3. All layers are computed together; masks are formed for matched queries alone, and compared at
points that are drawn for each mask, most of them where its logit is near zero.

Letters: L prediction layers, B batch, T frames, Q queries, N targets of an image, M targets of all images, K classes,
P points, H W size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from mask2former.errors import NonFiniteError
from mask2former.modeling.losses import dice_losses, sigmoid_ce_losses
from mask2former.modeling.matcher import HungarianMatcher
from mask2former.modeling.prediction import QueryPrediction, chosen_mask_logits
from mask2former.ops import point_sample, sample_uncertain_points


class SetCriterion(nn.Module):
    """Unweighted losses of all prediction layers. `loss_weights` says how much each counts: ce, mask, dice."""

    empty_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        matcher: HungarianMatcher,
        loss_weights: dict[str, float],
        no_object_weight: float,
        num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.matcher = matcher
        self.loss_weights = loss_weights
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = no_object_weight
        self.register_buffer("empty_weight", empty_weight)

    def forward(
        self, predictions: Sequence[QueryPrediction], targets: Sequence[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Scalar losses `loss_ce`, `loss_mask`, `loss_dice` of the last layer, and with suffix `_0`, … of the others.

        Targets, one for each image: `labels` (N,) in 0..K-1 and `masks` (N, [T,] H, W) bool, padded alike.
        """
        targets = [{**target, "masks": with_frames(target["masks"])} for target in targets]
        device = predictions[0].class_logits.device
        with torch.autocast(device.type, enabled=False):
            table = self._match(predictions, targets).to(device)  # (L, M)
            class_losses, class_weights = self.class_losses(predictions, targets, table)
        mask_losses, dice_losses_ = self.mask_losses(predictions, targets, table)
        # Divided by the sums of all processes: the mean of their losses is the loss of one process with all images.
        num_masks = class_weights.new_full((1,), table.shape[1])
        totals, num_processes = sum_over_processes(torch.cat([class_weights, num_masks]))
        num_masks = totals[-1].clamp(min=1) / num_processes
        layers = {
            "loss_ce": class_losses / (totals[:-1] / num_processes),
            "loss_mask": mask_losses / num_masks,
            "loss_dice": dice_losses_ / num_masks,
        }
        last = len(predictions) - 1
        losses = {name: values[last] for name, values in layers.items()}
        for layer in range(last):
            losses.update({f"{name}_{layer}": values[layer] for name, values in layers.items()})
        return losses

    def weight(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each loss times its weight; the layer suffix does not matter."""
        kinds = {name: "_".join(name.split("_")[:2]) for name in losses}
        return {name: loss * self.loss_weights[kinds[name]] for name, loss in losses.items()}

    def _match(self, predictions: Sequence[QueryPrediction], targets: Sequence[dict[str, Tensor]]) -> Tensor:
        try:
            return self.matcher(predictions, targets)
        except NonFiniteError:
            # The other processes wait for this one's share of the sums.
            sum_over_processes(torch.zeros(len(predictions) + 1, device=predictions[0].class_logits.device))
            raise

    def class_losses(
        self, predictions: Sequence[QueryPrediction], targets: Sequence[dict[str, Tensor]], table: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sums (L,) over all queries of weighted cross-entropies, and of their weights; "no object" if unmatched."""
        logits = torch.stack([prediction.class_logits for prediction in predictions]).float()  # (L, B, Q, K + 1)
        num_layers, num_batch, num_queries = logits.shape[:3]
        labels = torch.cat([target["labels"] for target in targets])
        images = torch.tensor([b for b, target in enumerate(targets) for _ in target["labels"]], dtype=torch.long)
        layers = torch.arange(num_layers, device=table.device)[:, None]
        # Unmatched targets write to a spare query, which is cut off: no search for them, no wait for the device.
        classes = labels.new_full((num_layers, num_batch, num_queries + 1), self.num_classes)
        classes[layers, images.to(table.device), table.where(table >= 0, num_queries)] = labels.expand_as(table)
        classes = classes[..., :num_queries]
        losses = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), self.empty_weight, reduction="none")
        return losses.view(num_layers, -1).sum(1), self.empty_weight[classes].flatten(1).sum(1)

    def mask_losses(
        self, predictions: Sequence[QueryPrediction], targets: Sequence[dict[str, Tensor]], table: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy and dice losses, two tensors (L,): sums over matched masks and over frames."""
        queries = table.clamp(min=0).split([len(target["labels"]) for target in targets], dim=1)
        logits = chosen_mask_logits(predictions, queries)
        masks = torch.cat([target["masks"] for target in targets])  # (M, T, H, W)
        point_logits, point_labels = self._at_points(torch.cat(logits, 1).float(), masks)  # (L, M, T, P)
        is_matched = (table >= 0).to(point_logits.dtype)  # (L, M)
        mask_losses = sigmoid_ce_losses(point_logits, point_labels).sum(-1)
        return (mask_losses * is_matched).sum(1), (dice_losses(point_logits, point_labels).sum(-1) * is_matched).sum(1)

    def _at_points(self, logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (L, M, T, h, w) and labels of their targets (M, T, H, W), both at points of each: (L, M, T, P)."""
        shape = (*logits.shape[:3], self.num_points)
        maps = logits.flatten(0, 2)[:, None]  # (LMT, 1, h, w)
        if len(maps) == 0:  # the empty product keeps the gradients of all parameters connected
            return maps.sum() + maps.new_zeros(shape), maps.new_zeros(shape)
        with torch.no_grad():
            points_xy = sample_uncertain_points(
                maps.detach(),
                num_points=self.num_points,
                oversample_ratio=self.oversample_ratio,
                importance_sample_ratio=self.importance_sample_ratio,
            )  # (LMT, P, 2)
            # A target is read at the points of all layers at once: (L, MT, P, 2) -> (MT, LP, 2)
            of_targets = points_xy.unflatten(0, (shape[0], -1)).transpose(0, 1).flatten(1, 2)
            labels = point_sample(masks.flatten(0, 1)[:, None].float(), of_targets)  # (MT, 1, LP)
            labels = labels.view(shape[1], shape[2], shape[0], shape[3]).permute(2, 0, 1, 3)  # (L, M, T, P)
        return point_sample(maps, points_xy).view(shape), labels


def with_frames(masks: Tensor) -> Tensor:
    """Masks (N, T, H, W) of masks (N, T, H, W) or (N, H, W)."""
    return masks.unsqueeze(1) if masks.ndim == 3 else masks


def sum_over_processes(values: Tensor) -> tuple[Tensor, int]:
    """The sum over all processes of a tensor that carries no gradient, and their number; all must call this alike."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return values, 1
    total = values.clone()
    distributed.all_reduce(total)
    return total, distributed.get_world_size()
