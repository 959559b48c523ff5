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
from transformers.image_utils import PILImageResampling, SizeDict

from mask2former.data.transforms import ResizeShortestEdge, ResizeTransform
from mask2former.errors import CheckpointError, ConfigError, InputError
from mask2former.integrations.transformers.published_results import (
    Sizes,
    instance_results,
    panoptic_results,
    semantic_results,
)

PARITIES = ("published", "transformers")


class OfTwoParities:
    """The part of an image processor that follows the published model, or with another ``parity`` theirs."""

    parity = PARITIES[0]

    def __init__(self, *, parity: str = PARITIES[0], **kwargs: Any) -> None:
        if parity not in PARITIES:
            raise ConfigError(f"parity: expected one of {', '.join(PARITIES)}, found {parity!r}")
        super().__init__(**kwargs)
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
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)  # type: ignore[misc]

    @property
    def is_exact(self) -> bool:
        """Whether the published model is followed."""
        return self.parity == "published"

    def resize(self, image: Tensor, size: SizeDict, *args: Any, resample: Any = None, **kwargs: Any) -> Tensor:
        """Return images (B, C, H, W) at the size that ``size`` asks for.

        Bilinear bytes as the published model resizes them.
        """
        theirs: Any = super()
        if not self.is_exact:
            return theirs.resize(image, size, *args, resample=resample, **kwargs)
        height, width = resized_size(image.shape[-2:], size)
        if image.dtype == torch.uint8 and image.device.type == "cpu" and resample == PILImageResampling.BILINEAR:
            transform = ResizeTransform(image.shape[-2], image.shape[-1], height, width)
            arrays = [transform.apply_image(single.permute(1, 2, 0).numpy()) for single in image]
            return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
        kwargs.pop("size_divisor", None)
        return theirs.resize(image, SizeDict(height=height, width=width), resample=resample, **kwargs)

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
            theirs: Any = super()
            return theirs.post_process_semantic_segmentation(outputs, target_sizes, return_segmentation_scores)
        return semantic_results(
            outputs, target_sizes=target_sizes, pixel_mask=pixel_mask, with_scores=return_segmentation_scores
        )

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
            theirs: Any = super()
            return theirs.post_process_panoptic_segmentation(
                outputs, threshold, mask_threshold, overlap_mask_area_threshold, label_ids_to_fuse, target_sizes
            )
        return panoptic_results(
            outputs,
            threshold=threshold,
            mask_threshold=mask_threshold,
            overlap_threshold=overlap_mask_area_threshold,
            fused=self._fused(label_ids_to_fuse),
            target_sizes=target_sizes,
            pixel_mask=pixel_mask,
        )

    def _fused(self, label_ids: set[int] | None) -> set[int]:
        """Return the classes whose regions are one segment; those given, by default none."""
        return set(label_ids or ())


class Mask2FormerImageProcessor(OfTwoParities, transformers.Mask2FormerImageProcessor):
    """Their processor with all its arguments, and ``parity``: "published" (the default) or "transformers"."""

    def __init__(self, *, parity: str = PARITIES[0], reduce_labels: bool | None = None, **kwargs: Any) -> None:
        """Arguments as theirs; ``reduce_labels`` is the older name of ``do_reduce_labels``.

        Raises:
            ConfigError: another parity.
        """
        super().__init__(parity=parity, **_with_reduce_labels(kwargs, reduce_labels))

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
                kwargs["pad_size"] = padded_size([image.shape[-2:] for image in images], size, divisor=divisor)
            kwargs["size_divisor"] = 0
        return super()._preprocess(images, *args, **kwargs)

    def pad(self, *args: Any, ignore_index: int | None = 255, **kwargs: Any) -> Any:
        """As theirs, but padding belongs to no mask, where theirs fills masks with ``ignore_index``."""
        return super().pad(*args, ignore_index=0 if self.is_exact else ignore_index, **kwargs)

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
        return instance_results(
            outputs,
            threshold=threshold,
            mask_threshold=mask_threshold,
            target_sizes=target_sizes,
            pixel_mask=pixel_mask,
            as_runs=bool(return_coco_annotation),
            as_masks=bool(return_binary_maps),
        )


def _with_reduce_labels(kwargs: dict[str, Any], reduce_labels: bool | None) -> dict[str, Any]:
    return kwargs if reduce_labels is None else {**kwargs, "do_reduce_labels": reduce_labels}


def resized_size(size: Sequence[int], wanted: SizeDict) -> tuple[int, int]:
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


def padded_size(sizes: Sequence[Sequence[int]], wanted: SizeDict | None, *, divisor: int) -> SizeDict:
    """Return the size that holds all images after resizing, a multiple of the divisor."""
    resized = [tuple(size) if wanted is None else resized_size(size, wanted) for size in sizes]
    height, width = (math.ceil(max(sides) / divisor) * divisor for sides in zip(*resized))
    return SizeDict(height=height, width=width)
