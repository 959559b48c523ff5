"""Backbones: ours for the models of detectron2, and those that a config names, of either project, for ours."""

from __future__ import annotations

from typing import Any

from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling import Backbone as DetectronBackbone

from mask2former.integrations.detectron2.registration import FromConfig, build_named
from mask2former.modeling import BACKBONE_REGISTRY as OUR_BACKBONES
from mask2former.modeling import backbone as ours
from mask2former.structures import ShapeSpec

# Detectron2 insists on its class, of which it uses what ours promise as well: maps by name, shapes, divisibility.
DetectronBackbone.register(ours.Backbone)


@BACKBONE_REGISTRY.register()
class D2SwinTransformer(FromConfig, ours.D2SwinTransformer):
    """Swin Transformer, with the features res2 to res5."""


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: Any, input_shape: ShapeSpec) -> ours.TimmBackbone:
    """Return the network MODEL.TIMM.NAME."""
    return ours.build_timm_backbone(cfg, input_shape)


def build_backbone(cfg: Any) -> Any:
    """Return the backbone MODEL.BACKBONE.NAME of detectron2, or of ours where that project has none of this name.

    Raises:
        ConfigError: neither has.
    """
    input_shape = ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    name = cfg.MODEL.BACKBONE.NAME
    return build_named(name, BACKBONE_REGISTRY, OUR_BACKBONES, cfg, input_shape, key="MODEL.BACKBONE.NAME")
