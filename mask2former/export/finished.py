"""Finished results as arrays of fixed shapes, computed in the exported graph by the decisions of ``postprocess``.

What an image has less of than there are places is filled up: class -1 and score 0. Unlike ``postprocess``, which takes
strips of the output, the graph holds the masks of all queries at the output size.

Letters: B batch, Q queries, N instances, K classes, H W output size, h w size of the logits.
"""

from __future__ import annotations

import math
from collections.abc import Set

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.modeling.mask_geometry import MaskGeometry
from mask2former.modeling.postprocess import AREA_EPSILON, InferenceOptions
from mask2former.runtime.exported_info import INSTANCE_OUTPUTS, PANOPTIC_OUTPUTS, SEMANTIC_OUTPUTS

NOTHING = -1  # the class of a place without segment or instance


class FinishedResults(nn.Module):
    """Makes the results of every task that ``options`` asks for from raw outputs.

    ``panoptic_ids`` (B, H, W) int32 from 1, 0 is void, with ``segment_classes`` (B, Q) int32 and ``segment_scores``
    (B, Q) of ids 1, 2, …; ``instance_scores`` (B, N) in descending order, ``instance_classes`` (B, N) int32,
    ``instance_masks`` (B, N, H, W) bool and ``instance_boxes`` (B, N, 4) as x0, y0, x1, y1; ``semantic_labels``
    (B, H, W) int32.
    """

    is_thing: Tensor

    def __init__(
        self, options: InferenceOptions, *, num_classes: int, thing_ids: Set[int] | None, common_stride: int | None
    ) -> None:
        """``common_stride``: of a model without queries, whose ``class_maps`` are that much smaller; else None."""
        super().__init__()
        self.options = options
        self.common_stride = common_stride
        threshold = options.mask_threshold
        self._least_logit = math.log(threshold / (1 - threshold)) if 0 < threshold < 1 else threshold - 0.5
        things = [thing_ids is None or label in thing_ids for label in range(num_classes)]
        self.register_buffer("is_thing", torch.tensor(things), persistent=False)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Return the names of the outputs, in their order."""
        if self.common_stride is not None:
            return SEMANTIC_OUTPUTS
        options = self.options
        return (
            *(PANOPTIC_OUTPUTS if options.panoptic else ()),
            *(INSTANCE_OUTPUTS if options.instance else ()),
            *(SEMANTIC_OUTPUTS if options.semantic else ()),
        )

    def forward(self, *raw: Tensor, geometry: MaskGeometry) -> tuple[Tensor, ...]:
        """Return the outputs from ``class_logits`` and ``mask_logits``, or from ``class_maps`` (B, K, h, w)."""
        if self.common_stride is not None:
            (maps,) = raw
            enlarged = (maps.shape[-2] * self.common_stride, maps.shape[-1] * self.common_stride)
            maps = _resize(_resize(maps, enlarged)[..., : geometry.image[0], : geometry.image[1]], geometry.output)
            return (maps.argmax(1).int(),)
        class_logits, mask_logits = raw
        options = self.options
        class_probs = class_logits.softmax(-1)
        inside = _resize(mask_logits, geometry.padded)[..., : geometry.image[0], : geometry.image[1]]
        resize_first = options.resize_before_inference or options.panoptic or options.instance
        logits = _resize(inside, geometry.output) if resize_first else inside
        probs = _sigmoid(logits)
        outputs: tuple[Tensor, ...] = ()
        if options.panoptic:
            outputs += self._panoptic(class_probs, logits, probs)
        if options.instance:
            outputs += self._instances(class_probs, logits, probs)
        if options.semantic:
            sums = torch.einsum("bqk,bqhw->bkhw", class_probs[..., :-1], probs)
            outputs += ((sums if resize_first else _resize(sums, geometry.output)).argmax(1).int(),)
        return outputs

    def _panoptic(self, class_probs: Tensor, logits: Tensor, probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        num_batch, num_queries = probs.shape[:2]
        scores, labels = class_probs.max(-1)  # (B, Q)
        kept = (labels != class_probs.shape[-1] - 1) & (scores > self.options.object_mask_threshold)
        weights = torch.where(kept, scores, scores.new_full((), -1.0))
        winners = (probs * weights[..., None, None]).argmax(1)  # (B, H, W)
        is_inside = logits >= self._least_logit  # (B, Q, H, W)
        numbers = 2 * winners + is_inside.gather(1, winners[:, None])[:, 0].long()
        pixels = numbers.flatten(1)
        won = torch.zeros((num_batch, 2 * num_queries), dtype=torch.long, device=probs.device)
        won = won.scatter_add(1, pixels, torch.ones_like(pixels)).view(num_batch, num_queries, 2)
        areas = is_inside.flatten(2).long().sum(2)
        share = won.sum(2) / areas.clamp(min=1)
        stays = kept & (won[..., 1] > 0) & (share >= self.options.overlap_threshold)
        number_of, is_first = self._number(labels, stays)
        ids_of = torch.stack((torch.zeros_like(number_of), number_of), dim=2).flatten(1)  # (B, 2 Q)
        ids = ids_of.gather(1, pixels).view(numbers.shape)
        return (ids.int(), *_segments(labels, scores, number_of, is_first))

    def _number(self, labels: Tensor, stays: Tensor) -> tuple[Tensor, Tensor]:
        """Return the segment (B, Q) of each query, 0 for none, and which queries are the first of their segment."""
        num_queries = labels.shape[1]
        is_stuff = ~self.is_thing[labels.clamp(max=len(self.is_thing) - 1)]
        order = torch.arange(num_queries, device=labels.device)
        # Regions of one stuff class are one segment: that of the first query of the class.
        is_joined = (labels[:, :, None] == labels[:, None]) & (stays & is_stuff)[:, None] & is_stuff[:, :, None]
        is_joined = is_joined | (order[:, None] == order)
        first = torch.where(is_joined, order, num_queries).amin(2)  # (B, Q)
        is_first = stays & (first == order)
        number = is_first.long().cumsum(1).gather(1, first)
        return torch.where(stays, number, torch.zeros_like(number)), is_first

    def _instances(self, class_probs: Tensor, logits: Tensor, probs: Tensor) -> tuple[Tensor, ...]:
        options, num_classes = self.options, class_probs.shape[-1] - 1
        pair_probs = class_probs[..., :-1].flatten(1)  # (B, QK)
        scores, pairs = pair_probs.topk(min(options.detections_per_image, pair_probs.shape[1]))
        queries, labels = pairs // num_classes, pairs % num_classes
        masks = logits > self._least_logit
        sums = (probs * masks).flatten(2).sum(2)
        quality = sums / (masks.flatten(2).sum(2) + AREA_EPSILON)  # (B, Q)
        scores = scores * quality.gather(1, queries)
        is_kept = scores >= options.score_threshold
        if options.panoptic:  # stuff is dropped after the choice of the best
            is_kept = is_kept & self.is_thing[labels]
        order = torch.where(is_kept, scores, scores.new_full((), -1.0)).topk(scores.shape[1])[1]
        scores, labels, queries, is_kept = (values.gather(1, order) for values in (scores, labels, queries, is_kept))
        index = queries[..., None, None].expand(-1, -1, *masks.shape[2:])
        chosen = masks.gather(1, index) & is_kept[..., None, None]
        boxes = _boxes(masks).gather(1, queries[..., None].expand(-1, -1, 4)) * is_kept[..., None]
        labels = torch.where(is_kept, labels, NOTHING).int()
        return torch.where(is_kept, scores, scores.new_zeros(())), labels, chosen, boxes


def _segments(labels: Tensor, scores: Tensor, number_of: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
    """Return class and score (B, Q) of segments 1, 2, …, from the segment of each query."""
    places = torch.arange(1, labels.shape[1] + 1, device=labels.device)
    belongs = number_of[..., None] == places  # (B, Q, places)
    classes = torch.where(belongs & is_first[..., None], labels[..., None], NOTHING).amax(1)
    best = torch.where(belongs, scores[..., None], scores.new_zeros(())).amax(1)
    return classes.int(), best


def _boxes(masks: Tensor) -> Tensor:
    """Return boxes (B, Q, 4) as x0, y0, x1, y1, the last two exclusive, of masks (B, Q, H, W); zeros of empty ones."""
    sides = []
    for axis in (2, 3):  # over rows, which leaves columns: x first
        taken = masks.any(axis)  # (B, Q, W) or (B, Q, H)
        places = torch.arange(taken.shape[2], device=masks.device)
        stop = torch.where(taken, places + 1, 0).amax(2)
        start = torch.where(taken, places, taken.shape[2]).amin(2)
        sides.append((torch.minimum(start, stop), stop))
    (x0, x1), (y0, y1) = sides
    return torch.stack((x0, y0, x1, y1), dim=2).float()


def _sigmoid(logits: Tensor) -> Tensor:
    """Return probabilities that stay apart however small they are.

    The sigmoid of some runtimes, ONNX Runtime's on CPUs, ends at 1.5e-8; but the largest of small ones decides, too.
    """
    return (-F.softplus(-logits)).exp()


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
