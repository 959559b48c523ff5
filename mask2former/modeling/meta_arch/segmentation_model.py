"""What every meta-architecture holds: a backbone, a head, and how images come in.

Letters: B batch, T frames, C channels, H W size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mask2former.modeling.backbone import build_backbone
from mask2former.modeling.inference_precision import parse_precision
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
        backbone: Any,
        *,
        sem_seg_head: Any,
        size_divisibility: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        inference_dtype: torch.dtype | None = None,
    ) -> None:
        """A negative `size_divisibility` stands for the backbone's.

        `inference_dtype`: what autocast brings inference to; None: what is on around the call.
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
        """A backbone and the head that fits it."""
        backbone, sem_seg_head = cls.build_parts(cfg)
        return {
            "backbone": backbone,
            "sem_seg_head": sem_seg_head,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "inference_dtype": parse_precision(cfg.MODEL.PRECISION),
        }

    @classmethod
    def build_parts(cls, cfg: Any) -> tuple[Any, Any]:
        """The backbone and the head that a config names; what is overridden to look the names up elsewhere."""
        backbone = build_backbone(cfg)
        return backbone, build_sem_seg_head(cfg, backbone.output_shape())

    def train(self, mode: bool = True) -> SegmentationModel:
        """Raises RuntimeError where training is wanted of a model that `prepare_for_inference` was given."""
        if mode and self.is_prepared:
            raise RuntimeError("the model was prepared for inference and cannot be trained: build another one")
        return super().train(mode)

    @property
    def device(self) -> torch.device:
        """Where the model computes; inputs are moved there."""
        return self.pixel_mean.device

    def pad(self, batch: Sequence[dict[str, Any]]) -> tuple[Tensor, list[MaskGeometry]]:
        """Normalised images or frames (BT, C, H, W), and for each sample the way back to its output size."""
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
        """Backbone maps (B, C, h, w) by name of images; for clips, folded as (BT, 3, H, W): (B, T, C, h, w)."""
        features = self.backbone(images)
        if num_frames is None:
            return features
        return {name: unfold_frames(maps, num_frames) for name, maps in features.items()}

    def predict(self, images: Tensor, *, num_frames: int | None = None) -> Any:
        """What the head predicts, layer by layer, of images as `features` takes them."""
        with self.inference_precision():
            return self.predict_pixels(images, num_frames=num_frames)

    def predict_pixels(self, images: Tensor, *, num_frames: int | None = None) -> Any:
        """The same in the precision that is on."""
        return self.sem_seg_head.predict(self.features(images, num_frames=num_frames))

    def inference_precision(self) -> contextlib.AbstractContextManager[None]:
        """The autocast of inference; in training, that around the call stays."""
        if self.training or self.inference_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.inference_dtype)
