"""Mask2Former as a meta-architecture of detectron2: the same model, with parts that its registries name.

Letters: B batch, T frames, C channels, H W size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList
from torch import Tensor

from mask2former import modeling as ours
from mask2former.integrations.detectron2.backbones import build_backbone
from mask2former.integrations.detectron2.heads import build_head
from mask2former.integrations.detectron2.registration import FromConfig
from mask2former.integrations.detectron2.structures import result_to_detectron2, sample_from_detectron2
from mask2former.modeling.fast import use_channels_last
from mask2former.modeling.mask_geometry import MaskGeometry


@META_ARCH_REGISTRY.register()
class MaskFormer(FromConfig, ours.MaskFormer):
    """Takes and returns detectron2's structures; state dicts, losses and results are those of our own model."""

    backbone: Any  # detectron2's, which has padding_constraints too

    @configurable
    def __init__(self, *args: Any, ignore_value: int = 255, channels_last: bool = False, **kwargs: Any) -> None:
        """`ignore_value` marks pixels of `sem_seg` that belong to no target; `channels_last`: the layout of maps."""
        super().__init__(*args, **kwargs)
        self.ignore_value = ignore_value
        if channels_last:
            use_channels_last(self)

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        """As ours, with the label that is ignored, and the layout that `build_model` would choose."""
        return {
            **super().from_config(cfg),
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "channels_last": cfg.MODEL.CHANNELS_LAST or torch.device(cfg.MODEL.DEVICE).type == "cpu",
        }

    @classmethod
    def build_parts(cls, cfg: Any) -> tuple[Any, Any]:
        """Backbone and head of detectron2's registries."""
        backbone = build_backbone(cfg)
        return backbone, build_head(cfg, backbone.output_shape())

    def forward(self, batch: Sequence[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """As ours; `instances` are detectron2's, in and out, and target masks BitMasks, PolygonMasks or (N, H, W).

        A training sample without `instances` may have `sem_seg` (H, W).
        """
        if self.training:
            batch = [sample_from_detectron2(sample, ignore_label=self.ignore_value) for sample in batch]
            return super().forward(batch)
        return [result_to_detectron2(result) for result in super().forward(batch)]  # type: ignore[arg-type]

    def preprocess_image(self, batch: Sequence[dict[str, Any]]) -> ImageList:
        """Normalised and padded images, or a clip's frames, as the backbone gets them."""
        images, geometries = self.pad(batch)
        repeats = len(images) // len(geometries)
        return ImageList(images, [geometry.image for geometry in geometries for _ in range(repeats)])

    def pad(self, batch: Sequence[dict[str, Any]]) -> tuple[Tensor, list[MaskGeometry]]:
        """As ours, and to the square that a backbone such as ViTDet's asks for."""
        images, geometries = super().pad(batch)
        side = self.backbone.padding_constraints.get("square_size", 0)
        below, right = (max(side - length, 0) for length in images.shape[-2:])
        if not below and not right:
            return images, geometries
        images = F.pad(images, (0, right, 0, below))
        padded = (int(images.shape[-2]), int(images.shape[-1]))
        return images, [replace(geometry, padded=padded) for geometry in geometries]


@META_ARCH_REGISTRY.register()
class VideoMaskFormer(MaskFormer):
    """The published name of the same model in video configs."""

    takes_clips = True
