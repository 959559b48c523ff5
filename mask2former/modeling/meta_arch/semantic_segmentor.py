"""Semantic segmentation as classification of pixels: the model of the per-pixel baselines (MaskFormer, section 4.2).

Letters: B batch, K classes, H W size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mask2former.errors import InputError
from mask2former.modeling.interfaces import Backbone, PixelHead
from mask2former.modeling.mask_geometry import MaskGeometry, MaskResizer
from mask2former.modeling.meta_arch.inputs import count_frames, pad_label_maps
from mask2former.modeling.meta_arch.segmentation_model import SegmentationModel
from mask2former.modeling.postprocess import InferenceOptions
from mask2former.modeling.registry import META_ARCH_REGISTRY


@META_ARCH_REGISTRY.register()
class SemanticSegmentor(SegmentationModel):
    """The published meta-architecture: from a list of dictionaries to losses in training, else to a list of results."""

    sem_seg_head: PixelHead

    def __init__(
        self,
        backbone: Backbone,
        *,
        sem_seg_head: PixelHead,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        ignore_value: int = 255,
        loss_weight: float = 1.0,
        inference: InferenceOptions | None = None,
        inference_dtype: torch.dtype | None = None,
    ) -> None:
        """``ignore_value`` marks pixels of ``sem_seg`` that are not trained on.

        ``inference``: only whether classes are returned instead of scores is used.
        """
        # Parity: images are padded as the backbone needs, whatever MASK_FORMER.SIZE_DIVISIBILITY says.
        super().__init__(
            backbone,
            sem_seg_head=sem_seg_head,
            size_divisibility=backbone.size_divisibility,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            inference_dtype=inference_dtype,
        )
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.inference = InferenceOptions() if inference is None else inference

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        """Return a backbone, a per-pixel head, and the training options of MODEL.SEM_SEG_HEAD."""
        return {
            **super().from_config(cfg),
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "loss_weight": cfg.MODEL.SEM_SEG_HEAD.LOSS_WEIGHT,
            "inference": InferenceOptions(semantic_labels=cfg.TEST.SEMANTIC_LABELS),
        }

    def forward(self, batch: Sequence[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Return weighted scalar losses in training, one dictionary with ``sem_seg`` (K, H, W) per sample otherwise.

        Each sample holds ``image`` (C, H, W), 0..255; in training ``sem_seg`` (H, W) class ids, or ``instances`` with
        equivalent masks; in inference ``height`` and ``width``, the output size, by default that of the image.

        Raises:
            InputError: samples are malformed, or are clips.
        """
        if count_frames(batch) is not None:
            raise InputError(f"{type(self).__name__} takes images (3, H, W): found clips")
        images, geometries = self.pad(batch)
        predictions = self.predict(images)
        if self.training:
            return self.losses(predictions, batch, size=geometries[0].padded)
        return self.results(predictions[-1], geometries)

    def losses(
        self, predictions: Sequence[Tensor], batch: Sequence[dict[str, Any]], *, size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Return weighted ``loss_sem_seg`` of the last of the logits (B, K, h, w), and ``loss_sem_seg_0``, ….

        ``size`` is the padded input's.
        """
        labels = pad_label_maps(
            batch,
            size=size,
            num_classes=self.sem_seg_head.num_classes,
            ignore_value=self.ignore_value,
            device=self.device,
        )
        losses = self.sem_seg_head.losses(predictions, labels)
        return {name: self.loss_weight * loss for name, loss in losses.items()}

    @torch.no_grad()
    def results(self, logits: Tensor, geometries: Sequence[MaskGeometry]) -> list[dict[str, Any]]:
        """Return logits (B, K, h, w) at the output size of each sample, or the class of the largest, (H, W) int32."""
        stride = self.sem_seg_head.common_stride
        enlarged = (logits.shape[-2] * stride, logits.shape[-1] * stride)  # an odd input is smaller
        with torch.autocast(self.device.type, enabled=False):
            return [
                {"sem_seg": self._at_output_size(maps, replace(geometry, padded=enlarged))}
                for maps, geometry in zip(logits, geometries, strict=True)
            ]

    def _at_output_size(self, maps: Tensor, geometry: MaskGeometry) -> Tensor:
        if not self.inference.semantic_labels:
            return geometry.resize(maps)
        labels = torch.empty(geometry.output, dtype=torch.int32, device=maps.device)
        resizer = MaskResizer(geometry, (maps.shape[-2], maps.shape[-1]), device=maps.device)
        for strip in resizer.strips(len(maps)):
            labels[strip] = resizer(maps, strip).argmax(0)
        return labels
