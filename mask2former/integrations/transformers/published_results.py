"""Results by the published rules, of the outputs of a model of transformers or of ours.

Letters: B batch, Q queries, K classes, N segments, H W image size, h w size of the mask logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.models.mask2former.image_processing_mask2former import binary_mask_to_rle

from mask2former.errors import InputError
from mask2former.modeling.postprocess import InferenceOptions, MaskGeometry, infer_image

_MASK_STRIDE = 4  # pixels of the padded image for one of the mask logits
_NOT_AN_INSTANCE = -1  # in maps of instances, as theirs

Sizes = Sequence[tuple[int, int]] | Tensor


def semantic_results(
    outputs: Any, *, target_sizes: Sizes | None, pixel_mask: Tensor | None, with_scores: bool
) -> list[Any]:
    """Return by image the class of each pixel (H, W), or ``segmentation`` and ``segmentation_scores``."""
    results = _infer(outputs, InferenceOptions(semantic=True), target_sizes=target_sizes, pixel_mask=pixel_mask)
    scores = [result["sem_seg"] for result in results]
    if not with_scores:
        return [maps.argmax(0) for maps in scores]
    return [
        SemanticSegmentationPostProcessorOutput(data={"segmentation": maps.argmax(0), "segmentation_scores": maps})
        for maps in scores
    ]


def instance_results(
    outputs: Any,
    *,
    threshold: float,
    mask_threshold: float,
    target_sizes: Sizes | None,
    pixel_mask: Tensor | None,
    as_runs: bool = False,
    as_masks: bool = False,
    things: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Return by image ``segmentation`` and ``segments_info`` of instances of at least ``threshold``, best first.

    ``things``: the only classes that are instances; None: all.

    Raises:
        InputError: both kinds of masks asked for, a threshold out of range, or not as many sizes as images.
    """
    if as_runs and as_masks:
        raise InputError("return_coco_annotation and return_binary_maps: expected at most one of them")
    options = InferenceOptions(
        semantic=False,
        instance=True,
        detections_per_image=outputs.class_queries_logits.shape[1],
        score_threshold=threshold,
        mask_threshold=_checked_threshold(mask_threshold),
    )
    results = _infer(outputs, options, target_sizes=target_sizes, pixel_mask=pixel_mask)
    found = [result["instances"] for result in results]
    if things is not None:
        kept = torch.tensor(sorted(things))
        found = [instances[torch.isin(instances.pred_classes.cpu(), kept)] for instances in found]
    return [_describe_instances(instances, as_runs=as_runs, as_masks=as_masks) for instances in found]


def panoptic_results(
    outputs: Any,
    *,
    threshold: float,
    mask_threshold: float,
    overlap_threshold: float,
    fused: set[int],
    target_sizes: Sizes | None,
    pixel_mask: Tensor | None,
) -> list[dict[str, Any]]:
    """Return by image ``segmentation`` (H, W) int32, ids from 1 and 0 for void, and ``segments_info``.

    Regions of a class in ``fused`` are one segment, listed once.

    Raises:
        InputError: a threshold out of range, or not as many target sizes as images.
    """
    options = InferenceOptions(
        semantic=False,
        panoptic=True,
        object_mask_threshold=threshold,
        overlap_threshold=overlap_threshold,
        mask_threshold=_checked_threshold(mask_threshold),
    )
    results = _infer(outputs, options, target_sizes=target_sizes, pixel_mask=pixel_mask, fused=fused)
    return [_describe_segments(*result["panoptic_seg"]) for result in results]


def infer_instances(outputs: Any, *, target_sizes: Sizes | None = None, pixel_mask: Tensor | None = None) -> list[Any]:
    """For each image the 100 best ``Instances`` by the published rules: what average precision is measured of."""
    options = InferenceOptions(semantic=False, instance=True)
    return [
        result["instances"] for result in _infer(outputs, options, target_sizes=target_sizes, pixel_mask=pixel_mask)
    ]


def _infer(
    outputs: Any,
    options: InferenceOptions,
    *,
    target_sizes: Sizes | None,
    pixel_mask: Tensor | None,
    fused: set[int] | None = None,
) -> list[dict[str, Any]]:
    """Return the model's results for each image, whatever library computed the logits."""
    class_logits, mask_logits = outputs.class_queries_logits, outputs.masks_queries_logits
    geometries = _geometries(outputs, target_sizes=target_sizes, pixel_mask=pixel_mask)
    things = None if fused is None else set(range(class_logits.shape[-1] - 1)) - fused
    with torch.no_grad():
        return [
            infer_image(classes, masks, geometry=geometry, options=options, thing_ids=things)
            for classes, masks, geometry in zip(class_logits, mask_logits, geometries, strict=True)
        ]


def _geometries(outputs: Any, *, target_sizes: Sizes | None, pixel_mask: Tensor | None) -> list[MaskGeometry]:
    num_images, _, height, width = outputs.masks_queries_logits.shape
    padded = images = [(height * _MASK_STRIDE, width * _MASK_STRIDE)] * num_images
    if pixel_mask is not None:
        is_image = pixel_mask.bool()
        images = list(zip(is_image.any(2).sum(1).tolist(), is_image.any(1).sum(1).tolist()))
        padded = [(int(pixel_mask.shape[1]), int(pixel_mask.shape[2]))] * num_images
    elif getattr(outputs, "image_sizes", None) is not None:
        images = [(size[0], size[1]) for size in outputs.image_sizes.tolist()]
        padded = [(size[0], size[1]) for size in outputs.padded_sizes.tolist()]
    targets = images if target_sizes is None else [(int(size[0]), int(size[1])) for size in target_sizes]
    if len(targets) != num_images:
        raise InputError(f"target_sizes: expected one for each of {num_images} images, found {len(targets)}")
    return [MaskGeometry(*sizes) for sizes in zip(padded, images, targets, strict=True)]


def _checked_threshold(mask_threshold: float) -> float:
    if not 0 <= mask_threshold <= 1:
        raise InputError(f"mask_threshold: expected a probability, 0..1, found {mask_threshold}")
    return mask_threshold


def _describe_instances(instances: Any, *, as_runs: bool, as_masks: bool) -> dict[str, Any]:
    chosen = instances[instances.pred_masks.flatten(1).any(1)]
    masks = chosen.pred_masks  # (N, H, W)
    segments = [
        {"id": index, "label_id": label, "was_fused": False, "score": round(score, 6)}
        for index, (label, score) in enumerate(zip(chosen.pred_classes.tolist(), chosen.scores.tolist()))
    ]
    segmentation: Any
    if as_runs:
        segmentation = [binary_mask_to_rle(mask.int()) for mask in masks]
    elif as_masks:
        segmentation = masks.float()
    else:
        segmentation = torch.full(masks.shape[1:], _NOT_AN_INSTANCE, dtype=torch.int32, device=masks.device)
        for index in reversed(range(len(masks))):
            segmentation[masks[index]] = index
    return {"segmentation": segmentation, "segments_info": segments}


def _describe_segments(ids: Tensor, segments: list[dict[str, Any]]) -> dict[str, Any]:
    described = [
        {
            "id": segment["id"],
            "label_id": segment["category_id"],
            "was_fused": not segment["isthing"],
            "score": round(segment["score"], 6),
        }
        for segment in segments
    ]
    return {"segmentation": ids, "segments_info": described}
