"""Whether our model, as it is timed, computes what that of transformers does: layer by layer, and in its panoptic maps.

Random weights make hard cases: mask logits lie near zero, so that rounding moves attention masks, and classes are as
near to each other, so that layers behind them differ by more than rounding. In bfloat16 the largest difference of late
layers therefore says little; what no attention mask has touched is compared by its largest difference, the rest by the
root mean square.

Letters: B batch, Q queries, K classes, H W size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.comparison import DifferenceError, largest_difference, require_at_most, typical_difference

# Found on CPUs, with R18 at 64 x 64 and R50 at 800 x 1088. float32: 2e-6 before and 2e-5 behind attention masks, no
# pixel. bfloat16: 0.018 before, 0.02 behind (0.08 in layers between); 2e-4 of the pixels of the large image, a tenth of
# a small one, where a query that is hardly sure of its class in one precision is not so in the other.
LIMITS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "float32": {
            "mask features": 1e-4,
            "masks of the first layer": 1e-4,
            "classes": 2e-3,
            "masks": 2e-3,
            "panoptic pixels, own logits": 2e-3,
            "panoptic pixels, their logits": 0.01,
            "panoptic pixels, their results": 0.01,
        },
        "bfloat16": {
            "mask features": 0.05,
            "masks of the first layer": 0.05,
            "classes": 0.1,
            "masks": 0.1,
            "panoptic pixels, own logits": 2e-3,
            "panoptic pixels, their logits": 0.25,
            "panoptic pixels, their results": 0.25,
        },
    }
)
_LEAST_MASK = 0.5
_NOTHING = -1


class _Logits(NamedTuple):
    """Of the last layer: classes (B, Q, K + 1), masks (B, Q, h, w)."""

    classes: Tensor
    masks: Tensor


@torch.no_grad()
def compare_models(
    pair: Any, samples: Sequence[dict[str, Any]], *, run_theirs: Callable[[], Sequence[dict[str, Any]]], dtype: str
) -> dict[str, float]:
    """Differences of logits, and shares of pixels whose category differs, of our model as it is.

    Our panoptic results are compared with a plain choice among our own logits and among theirs, and with `run_theirs`,
    the results of their own post-processing. That one leaves no pixel without a segment, unlike the published rules:
    there only pixels count for which both found one.

    Raises:
        DifferenceError: a difference is above LIMITS of `dtype`, or there are no segments to compare.
    """
    images, geometries = pair.ours.pad(samples)
    # A GPU's shortened float32 convolutions would differ between memory layouts by more than the models do.
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
        differences, ours, theirs = _compare_logits(pair, images)
        require_at_most(differences, LIMITS[dtype])
        results, their_results = pair.ours(samples), run_theirs()
    found = torch.stack([categories_of(*result["panoptic_seg"]) for result in results])
    threshold = pair.cfg.MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD
    for name, logits in (("own", ours), ("their", theirs)):
        of_images = zip(*logits, geometries, strict=True)
        plain = torch.stack([plain_categories(*of_image, threshold=threshold) for of_image in of_images])
        differences[f"panoptic pixels, {name} logits"] = float((found != plain).double().mean())
    maps = [categories_of(result["segmentation"], result["segments_info"]) for result in their_results]
    processed = torch.stack(maps).to(found.device)
    both = (found != _NOTHING) & (processed != _NOTHING)
    if not both.any():
        raise DifferenceError("there are no pixels for which both models found a segment: nothing is compared")
    differences["panoptic pixels, their results"] = float((found != processed)[both].double().mean())
    require_at_most(differences, LIMITS[dtype])
    return differences


def _compare_logits(pair: Any, images: Tensor) -> tuple[dict[str, float], _Logits, _Logits]:
    """Differences of what both models predict of normalised `images` (B, 3, H, W), and ours and theirs."""
    layers, outputs = pair.ours.predict(images), pair.theirs(pixel_values=images, output_auxiliary_logits=True)
    first_masks = outputs.auxiliary_logits[0]["masks_queries_logits"]
    first, last = layers[0], layers[-1]
    ours = _Logits(last.class_logits, last.mask_logits().squeeze(2))
    theirs = _Logits(outputs.class_queries_logits, outputs.masks_queries_logits)
    differences = {
        "mask features": largest_difference(first.mask_features.squeeze(1), outputs.pixel_decoder_last_hidden_state),
        "masks of the first layer": largest_difference(first.mask_logits().squeeze(2), first_masks),
        "classes": typical_difference(ours.classes, theirs.classes),
        "masks": typical_difference(ours.masks, theirs.masks),
    }
    return differences, ours, theirs


def categories_of(segment_ids: Tensor, segments: Sequence[Mapping[str, Any]]) -> Tensor:
    """The category of each pixel of a panoptic map (H, W), -1 where there is none."""
    categories = torch.full_like(segment_ids, _NOTHING, dtype=torch.long)
    for segment in segments:
        label = segment["category_id"] if "category_id" in segment else segment["label_id"]
        categories[segment_ids == segment["id"]] = label
    return categories


def plain_categories(class_logits: Tensor, mask_logits: Tensor, geometry: Any, *, threshold: float) -> Tensor:
    """The published panoptic choice (H, W) among (Q, K + 1) and (Q, h, w), of segments whatever they overlap with."""
    scores, labels = class_logits.float().softmax(-1).max(-1)
    kept = (scores > threshold) & (labels < class_logits.shape[-1] - 1)
    if not kept.any():
        return torch.full(geometry.output, _NOTHING, device=mask_logits.device)
    masks = _resized(mask_logits[kept].float()[None], geometry.padded)
    height, width = geometry.image
    probs = _resized(masks[..., :height, :width], geometry.output)[0].sigmoid()  # (N, H, W)
    chosen = (scores[kept][:, None, None] * probs).argmax(0)
    is_inside = probs.gather(0, chosen[None])[0] >= _LEAST_MASK
    return torch.where(is_inside, labels[kept][chosen], _NOTHING)


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
