"""The model and its parts in the registries of detectron2, made as it makes them: from a config and shapes of maps.

A config names parts of either project. The meta-architecture is the same model; the optimiser is the one built here.

Letters: B batch, T frames, K classes, C channels, H W size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from detectron2.modeling import Backbone as DetectronBackbone
from detectron2.structures import ImageList
from fvcore.common.registry import Registry
from torch import Tensor, nn

from mask2former import modeling as ours
from mask2former.config import Registry as OurRegistry
from mask2former.config import build_from_config
from mask2former.engine.optimizer import build_gradient_clipping
from mask2former.engine.optimizer import build_optimizer as build_our_optimizer
from mask2former.integrations.detectron2.structures import result_to_detectron2, sample_from_detectron2
from mask2former.modeling import BACKBONE_REGISTRY as OUR_BACKBONES
from mask2former.modeling import SEM_SEG_HEADS_REGISTRY as OUR_HEADS
from mask2former.modeling import accelerate
from mask2former.modeling import backbone as our_backbones
from mask2former.modeling.fast import use_channels_last
from mask2former.modeling.fast.encoder import FastMSDeformAttnPixelDecoder
from mask2former.modeling.losses import IGNORED
from mask2former.modeling.mask_geometry import MaskGeometry
from mask2former.modeling.meta_arch.assembly import (
    build_class_decoder,
    build_pixel_classifier,
    build_transformer_decoder,
)
from mask2former.structures import ShapeSpec


class FromConfig:
    """Base of modules that are made from a config and what follows it, or from keyword arguments."""

    @configurable
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        accelerate(self)  # type: ignore[type-var]


def build_named(name: str, theirs: Registry, ours: OurRegistry, *args: Any, key: str) -> Any:
    """Build what is registered as ``name`` in detectron2, or else here, from ``args``; the first is the config.

    Raises:
        ConfigError: neither knows the name, which the config gives as ``key``.
    """
    if name in theirs:
        return theirs.get(name)(*args)
    return build_from_config(ours.lookup(name, key=key), *args)


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


# Detectron2 insists on its class, of which it uses what ours promise as well: maps by name, shapes, divisibility.
DetectronBackbone.register(our_backbones.Backbone)


@BACKBONE_REGISTRY.register()
class D2SwinTransformer(FromConfig, our_backbones.D2SwinTransformer):
    """Swin Transformer, with the features res2 to res5."""


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: Any, input_shape: ShapeSpec) -> our_backbones.TimmBackbone:
    """Return the network MODEL.TIMM.NAME."""
    return our_backbones.build_timm_backbone(cfg, input_shape)


def build_backbone(cfg: Any) -> Any:
    """Return the backbone MODEL.BACKBONE.NAME of detectron2, or of ours where that project has none of this name.

    Raises:
        ConfigError: neither has.
    """
    input_shape = ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    name = cfg.MODEL.BACKBONE.NAME
    return build_named(name, BACKBONE_REGISTRY, OUR_BACKBONES, cfg, input_shape, key="MODEL.BACKBONE.NAME")


@META_ARCH_REGISTRY.register()
class MaskFormer(FromConfig, ours.MaskFormer):
    """Takes and returns detectron2's structures; state dicts, losses and results are those of our own model."""

    backbone: Any  # detectron2's, which has padding_constraints too

    @configurable
    def __init__(self, *args: Any, ignore_value: int = 255, channels_last: bool = False, **kwargs: Any) -> None:
        """``ignore_value`` marks pixels of ``sem_seg`` without a target; ``channels_last`` is the layout of maps."""
        super().__init__(*args, **kwargs)
        self.ignore_value = ignore_value
        if channels_last:
            use_channels_last(self)

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        """As ours, with the label that is ignored, and the layout that ``build_model`` would choose."""
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
        """As ours; ``instances`` are detectron2's, in and out, and target masks BitMasks, PolygonMasks or (N, H, W).

        A training sample without ``instances`` may have ``sem_seg`` (H, W).
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


def build_optimizer(cfg: Any, model: nn.Module) -> torch.optim.Optimizer:
    """Return our optimiser of SOLVER, which clips gradients as SOLVER.CLIP_GRADIENTS says before each step.

    Raises:
        ConfigError: a value of SOLVER is wrong.
    """
    optimizer = build_our_optimizer(cfg, model)
    clip_gradients = build_gradient_clipping(cfg)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def clip(*_: Any) -> None:
        clip_gradients(parameters)

    optimizer.register_step_pre_hook(clip)
    # The scaler of mixed precision leaves unscaling to fused optimisers, whose step begins after the clipping.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer
