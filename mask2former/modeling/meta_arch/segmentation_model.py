"""The common part of meta-architectures: backbone, head, and preparation of images.

Letters: B batch, T frames, C channels, H W size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mask2former.modeling.backbone import build_backbone
from mask2former.modeling.execution import parse_precision
from mask2former.modeling.interfaces import Backbone, SegmentationHead
from mask2former.modeling.mask_geometry import MaskGeometry
from mask2former.modeling.meta_arch.assembly import build_sem_seg_head
from mask2former.modeling.meta_arch.inputs import pad_images, unfold_frames


class SegmentationModel(nn.Module):
    """Backbone and head, and the normalisation of pixels."""

    takes_clips: ClassVar[bool] = False  # trained on clips, and looks at several frames of a video at once
    compiled_steps: ClassVar[Sequence[str]] = ("predict_pixels",)  # see `compile_model`
    is_prepared: bool = False  # `prepare_for_inference` has merged and cast its weights
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        sem_seg_head: SegmentationHead,
        size_divisibility: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        inference_dtype: torch.dtype | None = None,
    ) -> None:
        """A negative ``size_divisibility`` stands for the backbone's.

        ``inference_dtype``: the dtype of autocast in inference; None: that of the surrounding context.
        """
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.size_divisibility = size_divisibility if size_divisibility >= 0 else backbone.size_divisibility
        self.inference_dtype = inference_dtype
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        """Return a backbone and the head that fits it."""
        backbone, sem_seg_head = cls.build_parts(cfg)
        return {
            "backbone": backbone,
            "sem_seg_head": sem_seg_head,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "inference_dtype": parse_precision(cfg.MODEL.PRECISION),
        }

    @classmethod
    def build_parts(cls, cfg: Any) -> tuple[Backbone, SegmentationHead]:
        """Return the backbone and head that a config names; override it to look the names up elsewhere."""
        backbone = build_backbone(cfg)
        return backbone, build_sem_seg_head(cfg, backbone.output_shape())

    def train(self, mode: bool = True) -> SegmentationModel:
        """Set the mode.

        Raises:
            RuntimeError: training mode of a model prepared by ``prepare_for_inference``.
        """
        if mode and self.is_prepared:
            raise RuntimeError("the model was prepared for inference and cannot be trained: build another one")
        return super().train(mode)

    @property
    def device(self) -> torch.device:
        """Where the model computes; inputs are moved there."""
        return self.pixel_mean.device

    def pad(self, batch: Sequence[dict[str, Any]]) -> tuple[Tensor, list[MaskGeometry]]:
        """Return normalised images or frames (BT, C, H, W), and the geometry of each sample up to its output size."""
        images, sizes = pad_images(
            batch, mean=self.pixel_mean, std=self.pixel_std, size_divisibility=self.size_divisibility
        )
        padded = (int(images.tensor.shape[-2]), int(images.tensor.shape[-1]))
        geometries = [
            MaskGeometry(padded, size, (int(sample.get("height", size[0])), int(sample.get("width", size[1]))))
            for sample, size in zip(batch, sizes, strict=True)
        ]
        return images.tensor, geometries

    def features(self, images: Tensor, *, num_frames: int | None = None) -> dict[str, Tensor]:
        """Return the backbone maps of images by name, (B, C, h, w).

        For clips, whose frames are given as (BT, 3, H, W), they are (B, T, C, h, w).
        """
        features = self.backbone(images)
        if num_frames is None:
            return features
        return {name: unfold_frames(maps, num_frames) for name, maps in features.items()}

    def predict(self, images: Tensor, *, num_frames: int | None = None) -> Any:
        """Return the head's predictions, layer by layer, for images in the form that ``features`` takes."""
        with self.inference_precision():
            return self.predict_pixels(images, num_frames=num_frames)

    def predict_pixels(self, images: Tensor, *, num_frames: int | None = None) -> Any:
        """Return the same in the precision of the surrounding context."""
        return self.sem_seg_head.predict(self.features(images, num_frames=num_frames))

    def inference_precision(self) -> contextlib.AbstractContextManager[None]:
        """Return the autocast context of inference; in training that of the caller stays."""
        if self.training or self.inference_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.inference_dtype)
