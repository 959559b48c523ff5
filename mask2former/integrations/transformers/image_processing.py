"""The image processor of transformers' Mask2Former, exact by default, or bit-equal to theirs.

Theirs stretches images to multiples of ``size_divisor``, and brings masks to 384 x 384 pixels, padding included, before
it brings them to the size asked for. With ``parity="published"`` images keep their shape and are padded, and results
are those of the published model: padding cropped, masks enlarged once, every rule of panoptic inference at full size.
``parity="transformers"`` leaves everything to theirs.

Letters: B batch, Q queries, K classes, N segments, H W image size, h w size of the mask logits.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.models.mask2former.image_processing_mask2former import binary_mask_to_rle

from mask2former.data.transforms import ResizeShortestEdge, ResizeTransform
from mask2former.errors import CheckpointError, ConfigError, InputError
from mask2former.modeling.postprocess import InferenceOptions, MaskGeometry, infer_image

PARITIES = ("published", "transformers")
_MASK_STRIDE = 4  # pixels of the padded image for one of the mask logits
_NOT_AN_INSTANCE = -1  # in maps of instances, as theirs

Sizes = Sequence[tuple[int, int]] | Tensor


class Mask2FormerImageProcessor(transformers.Mask2FormerImageProcessor):
    """Their processor with all its arguments, and ``parity``: "published" (the default) or "transformers"."""

    parity = PARITIES[0]

    def __init__(self, *, parity: str = PARITIES[0], reduce_labels: bool | None = None, **kwargs: Any) -> None:
        """Arguments as theirs; ``reduce_labels`` is the older name of ``do_reduce_labels``.

        Raises:
            ConfigError: another parity.
        """
        if parity not in PARITIES:
            raise ConfigError(f"parity: expected one of {', '.join(PARITIES)}, found {parity!r}")
        super().__init__(**_with_reduce_labels(kwargs, reduce_labels))
        self.parity = parity

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """As theirs.

        Raises:
            CheckpointError: a local folder that is not there, for which theirs names the rules of the hub.
        """
        path = Path(pretrained_model_name_or_path).expanduser()
        if not path.exists() and (path.is_absolute() or str(pretrained_model_name_or_path).startswith(".")):
            raise CheckpointError(f"{path}: expected a folder with preprocessor_config.json, found no such folder")
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @property
    def is_exact(self) -> bool:
        """Whether the published model is followed."""
        return self.parity == "published"

    def preprocess(
        self,
        images: Any,
        segmentation_maps: Any = None,
        instance_id_to_semantic_id: Any = None,
        *,
        reduce_labels: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """``pixel_values`` (B, 3, H, W), ``pixel_mask`` (B, H, W).

        With maps also lists ``mask_labels``, ``class_labels``.
        """
        kwargs = _with_reduce_labels(kwargs, reduce_labels)
        return super().preprocess(images, segmentation_maps, instance_id_to_semantic_id, **kwargs)

    def _preprocess(self, images: list[Tensor], *args: Any, **kwargs: Any) -> Any:
        if self.is_exact:
            divisor = kwargs.pop("size_divisor") or 1
            if kwargs["pad_size"] is None:
                size = kwargs["size"] if kwargs["do_resize"] else None
                kwargs["pad_size"] = _padded_size([image.shape[-2:] for image in images], size, divisor=divisor)
            kwargs["size_divisor"] = 0
        return super()._preprocess(images, *args, **kwargs)

    def resize(
        self, image: Tensor, size: SizeDict, size_divisor: int = 0, resample: Any = None, **kwargs: Any
    ) -> Tensor:
        """Return images (B, C, H, W) at the size that ``size`` asks for.

        Bilinear bytes as the published model resizes them.
        """
        if not self.is_exact:
            return super().resize(image, size, size_divisor=size_divisor, resample=resample, **kwargs)
        height, width = _resized_size(image.shape[-2:], size)
        if image.dtype == torch.uint8 and image.device.type == "cpu" and resample == PILImageResampling.BILINEAR:
            transform = ResizeTransform(image.shape[-2], image.shape[-1], height, width)
            arrays = [transform.apply_image(single.permute(1, 2, 0).numpy()) for single in image]
            return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
        return super().resize(image, SizeDict(height=height, width=width), resample=resample, **kwargs)

    def pad(self, *args: Any, ignore_index: int | None = 255, **kwargs: Any) -> Any:
        """As theirs, but padding belongs to no mask, where theirs fills masks with ``ignore_index``."""
        return super().pad(*args, ignore_index=0 if self.is_exact else ignore_index, **kwargs)

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sizes | None = None,
        return_segmentation_scores: bool = False,
        *,
        pixel_mask: Tensor | None = None,
    ) -> list[Any]:
        """Return by image the class of each pixel (H, W), or ``segmentation`` and ``segmentation_scores``.

        ``target_sizes`` are pairs (H, W), by default those of the images. ``pixel_mask`` (B, H, W) says what is padding
        where the outputs do not, as those of our model do when it was given the mask.

        Raises:
            InputError: not as many target sizes as images.
        """
        if not self.is_exact:
            return super().post_process_semantic_segmentation(outputs, target_sizes, return_segmentation_scores)
        results = _infer(outputs, InferenceOptions(semantic=True), target_sizes=target_sizes, pixel_mask=pixel_mask)
        scores = [result["sem_seg"] for result in results]
        if not return_segmentation_scores:
            return [maps.argmax(0) for maps in scores]
        return [
            SemanticSegmentationPostProcessorOutput(data={"segmentation": maps.argmax(0), "segmentation_scores": maps})
            for maps in scores
        ]

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        target_sizes: Sizes | None = None,
        return_coco_annotation: bool | None = False,
        return_binary_maps: bool | None = False,
        *,
        pixel_mask: Tensor | None = None,
    ) -> list[dict[str, Any]]:
        """Return by image ``segmentation`` and ``segments_info`` of instances of at least ``threshold``, best first.

        ``segmentation`` is a map (H, W) of ids from 0, -1 where there is none, the better instance on top; with
        ``return_binary_maps`` masks (N, H, W) float, with ``return_coco_annotation`` their runs, both whole.
        ``overlap_mask_area_threshold`` does nothing, here as there: instances may overlap. The rest as for semantic.

        Raises:
            InputError: both kinds of maps asked for, a threshold out of range, or not as many sizes as images.
        """
        if not self.is_exact:
            thresholds = (threshold, mask_threshold, overlap_mask_area_threshold)
            return super().post_process_instance_segmentation(
                outputs, *thresholds, target_sizes, return_coco_annotation, return_binary_maps
            )
        if return_coco_annotation and return_binary_maps:
            raise InputError("return_coco_annotation and return_binary_maps: expected at most one of them")
        options = InferenceOptions(
            semantic=False,
            instance=True,
            detections_per_image=outputs.class_queries_logits.shape[1],
            score_threshold=threshold,
            mask_threshold=_checked_threshold(mask_threshold),
        )
        results = _infer(outputs, options, target_sizes=target_sizes, pixel_mask=pixel_mask)
        kinds = {"as_runs": bool(return_coco_annotation), "as_masks": bool(return_binary_maps)}
        return [_describe_instances(result["instances"], **kinds) for result in results]

    def post_process_panoptic_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        label_ids_to_fuse: set[int] | None = None,
        target_sizes: Sizes | None = None,
        *,
        pixel_mask: Tensor | None = None,
    ) -> list[dict[str, Any]]:
        """For each image ``segmentation`` (H, W) int32, ids from 1 and 0 for void, and ``segments_info``.

        Queries must score above ``threshold``; a segment must keep ``overlap_mask_area_threshold`` of its mask. Regions
        of a class in ``label_ids_to_fuse`` are one segment, listed once. The rest as for semantic.

        Raises:
            InputError: a threshold out of range, or not as many target sizes as images.
        """
        if not self.is_exact:
            return super().post_process_panoptic_segmentation(
                outputs, threshold, mask_threshold, overlap_mask_area_threshold, label_ids_to_fuse, target_sizes
            )
        fused = set(label_ids_to_fuse or ())
        options = InferenceOptions(
            semantic=False,
            panoptic=True,
            object_mask_threshold=threshold,
            overlap_threshold=overlap_mask_area_threshold,
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


def _with_reduce_labels(kwargs: dict[str, Any], reduce_labels: bool | None) -> dict[str, Any]:
    return kwargs if reduce_labels is None else {**kwargs, "do_reduce_labels": reduce_labels}


def _resized_size(size: Sequence[int], wanted: SizeDict) -> tuple[int, int]:
    """Height and width of an image of ``size`` (H, W) after resizing, the shorter side first where edges are given."""
    height, width = int(size[0]), int(size[1])
    if wanted.shortest_edge and wanted.longest_edge:
        return ResizeShortestEdge.output_size((height, width), wanted.shortest_edge, wanted.longest_edge)
    if wanted.max_height and wanted.max_width:
        scale = min(wanted.max_height / height, wanted.max_width / width)
        return max(1, int(height * scale)), max(1, int(width * scale))
    if wanted.height and wanted.width:
        return wanted.height, wanted.width
    raise InputError(
        f"size: expected shortest_edge and longest_edge, height and width, or max_height and max_width; found {wanted}"
    )


def _padded_size(sizes: Sequence[Sequence[int]], wanted: SizeDict | None, *, divisor: int) -> SizeDict:
    """Return the size that holds all images after resizing, a multiple of the divisor."""
    resized = [tuple(size) if wanted is None else _resized_size(size, wanted) for size in sizes]
    height, width = (math.ceil(max(sides) / divisor) * divisor for sides in zip(*resized))
    return SizeDict(height=height, width=width)


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
