"""Registries of the exchangeable model parts, by the names that published configs use.

A registered component takes keyword arguments and knows nothing of the config; its ``from_config(cls, cfg, ...)``
translates a config into those arguments. The protocol of each kind is in ``interfaces``.
"""

from __future__ import annotations

from mask2former.config.registry import Registry
from mask2former.config.registry import build_from_config as build_from_config

META_ARCH_REGISTRY = Registry("meta-architecture", key="MODEL.META_ARCHITECTURE")
BACKBONE_REGISTRY = Registry("backbone", key="MODEL.BACKBONE.NAME")
SEM_SEG_HEADS_REGISTRY = Registry("head or pixel decoder", key="MODEL.SEM_SEG_HEAD.NAME")
TRANSFORMER_DECODER_REGISTRY = Registry("transformer decoder", key="MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME")
CRITERION_REGISTRY = Registry("criterion", key="MODEL.MASK_FORMER.CRITERION")
MATCHER_REGISTRY = Registry("matcher", key="MODEL.MASK_FORMER.MATCHER")
LOSS_REGISTRY = Registry("loss", key="MODEL.MASK_FORMER.LOSSES")
POSTPROCESSING_REGISTRY = Registry("post-processing", key="MODEL.MASK_FORMER.POSTPROCESSING")


def takes_clips(name: str) -> bool:
    """Return whether the meta-architecture ``name`` is trained on clips; False if there is none of that name."""
    return name in META_ARCH_REGISTRY and bool(getattr(META_ARCH_REGISTRY.get(name), "takes_clips", False))
