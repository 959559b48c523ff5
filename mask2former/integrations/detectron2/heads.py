"""Segmentation heads and pixel decoders, made as detectron2 makes them: from a config and the shapes of feature maps.

Letters: B batch, K classes, C channels, H W size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.config import configurable
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor

from mask2former import modeling as ours
from mask2former.integrations.detectron2.registration import FromConfig, build_named
from mask2former.modeling import SEM_SEG_HEADS_REGISTRY as OUR_HEADS
from mask2former.modeling.fast.encoder import FastMSDeformAttnPixelDecoder
from mask2former.modeling.losses import IGNORED
from mask2former.modeling.meta_arch.assembly import (
    build_class_decoder,
    build_pixel_classifier,
    build_transformer_decoder,
)


@SEM_SEG_HEADS_REGISTRY.register()
class MSDeformAttnPixelDecoder(FromConfig, FastMSDeformAttnPixelDecoder):
    """The pixel decoder of Mask2Former."""


@SEM_SEG_HEADS_REGISTRY.register()
class BasePixelDecoder(FromConfig, ours.BasePixelDecoder):
    """A feature pyramid, the pixel decoder of MaskFormer."""


@SEM_SEG_HEADS_REGISTRY.register()
class TransformerEncoderPixelDecoder(FromConfig, ours.TransformerEncoderPixelDecoder):
    """The same with a transformer encoder on its lowest map."""


def build_head(cfg: Any, input_shape: Mapping[str, Any]) -> Any:
    """Return the head MODEL.SEM_SEG_HEAD.NAME of detectron2's registry.

    Raises:
        ConfigError: neither project has one of this name.
    """
    name = cfg.MODEL.SEM_SEG_HEAD.NAME
    return build_named(name, SEM_SEG_HEADS_REGISTRY, OUR_HEADS, cfg, input_shape, key="MODEL.SEM_SEG_HEAD.NAME")


def build_pixel_decoder(cfg: Any, input_shape: Mapping[str, Any]) -> Any:
    """Return the decoder MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME; somebody's own may be registered in either project."""
    key = "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME"
    name = cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME
    return build_named(name, SEM_SEG_HEADS_REGISTRY, OUR_HEADS, cfg, input_shape, key=key)


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(FromConfig, ours.MaskFormerHead):
    """Pixel decoder and transformer decoder."""

    @classmethod
    def from_config(cls, cfg: Any, input_shape: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        """Return both decoders, made for the maps of a backbone."""
        return super().from_config(
            cfg, build_pixel_decoder(cfg, input_shape), build_transformer_decoder(cfg, input_shape)
        )


class _HeadWithLosses(FromConfig):
    """What detectron2's SemanticSegmentor asks of a head: results or losses, from maps and labels."""

    @configurable
    def __init__(self, *args: Any, ignore_value: int = 255, loss_weight: float = 1.0, **kwargs: Any) -> None:
        """``ignore_value`` marks labels that train nothing."""
        super().__init__(*args, **kwargs)
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight

    def forward(self: Any, features: dict[str, Tensor], targets: Tensor | None = None) -> tuple[Any, dict[str, Tensor]]:
        """Maps (B, C, h, w) by name, labels (B, H, W) -> (None, weighted losses), or (logits (B, K, H, W), {})."""
        predictions = self.predict(features)
        if not self.training:
            return self.enlarge(predictions[-1]), {}
        assert targets is not None, "training a per-pixel head needs 'sem_seg' in each sample"
        losses = self.losses(predictions, targets.long().masked_fill(targets == self.ignore_value, IGNORED))
        return None, {name: self.loss_weight * loss for name, loss in losses.items()}


@SEM_SEG_HEADS_REGISTRY.register()
class PerPixelBaselineHead(_HeadWithLosses, ours.PerPixelBaselineHead):  # type: ignore[misc]
    """A pixel decoder and a classifier of its mask features."""

    @classmethod
    def from_config(cls, cfg: Any, input_shape: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        """Return its parts, made for the maps of a backbone."""
        parts = build_pixel_decoder(cfg, input_shape), build_pixel_classifier(cfg, input_shape)
        return {**super().from_config(cfg, *parts), **_loss_options(cfg)}


@SEM_SEG_HEADS_REGISTRY.register()
class PerPixelBaselinePlusHead(_HeadWithLosses, ours.PerPixelBaselinePlusHead):  # type: ignore[misc]
    """A pixel decoder, and a transformer decoder of one query a class."""

    @classmethod
    def from_config(cls, cfg: Any, input_shape: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        """Return its parts, made for the maps of a backbone."""
        parts = build_pixel_decoder(cfg, input_shape), build_class_decoder(cfg, input_shape)
        return {**super().from_config(cfg, *parts), **_loss_options(cfg)}


def _loss_options(cfg: Any) -> dict[str, Any]:
    options = cfg.MODEL.SEM_SEG_HEAD
    return {"ignore_value": options.IGNORE_VALUE, "loss_weight": options.LOSS_WEIGHT}
