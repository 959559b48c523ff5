"""Building the parts of a model that a config names."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.matcher import HungarianMatcher
from mask2former.modeling.registry import (
    META_ARCH_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    TRANSFORMER_DECODER_REGISTRY,
    build_from_config,
    lookup,
)
from mask2former.structures import ShapeSpec

_logger = logging.getLogger(__name__)


def build_model(cfg: Any) -> nn.Module:
    """The model of MODEL.META_ARCHITECTURE with random weights, on MODEL.DEVICE.

    Raises:
        ConfigError: a name is not registered, or parts do not fit.
    """
    meta_architecture = lookup(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE, key="MODEL.META_ARCHITECTURE")
    return build_from_config(meta_architecture, cfg).to(usable_device(cfg.MODEL.DEVICE))


def build_sem_seg_head(cfg: Any, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """The head of MODEL.SEM_SEG_HEAD.NAME with its pixel decoder and transformer decoder."""
    names, mask_former = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    head = lookup(SEM_SEG_HEADS_REGISTRY, names.NAME, key="MODEL.SEM_SEG_HEAD.NAME")
    pixel_decoder = lookup(
        SEM_SEG_HEADS_REGISTRY, names.PIXEL_DECODER_NAME, key="MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME"
    )
    predictor = lookup(
        TRANSFORMER_DECODER_REGISTRY,
        mask_former.TRANSFORMER_DECODER_NAME,
        key="MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME",
    )
    return build_from_config(
        head,
        cfg,
        build_from_config(pixel_decoder, cfg, input_shape),
        build_from_config(predictor, cfg, names.CONVS_DIM),
    )


def build_criterion(cfg: Any) -> SetCriterion:
    """Matcher and losses with the weights and point counts of MODEL.MASK_FORMER."""
    options = cfg.MODEL.MASK_FORMER
    matcher = HungarianMatcher(
        class_weight=options.CLASS_WEIGHT,
        mask_weight=options.MASK_WEIGHT,
        dice_weight=options.DICE_WEIGHT,
        num_points=options.TRAIN_NUM_POINTS,
    )
    return SetCriterion(
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        matcher=matcher,
        loss_weights={
            "loss_ce": options.CLASS_WEIGHT,
            "loss_mask": options.MASK_WEIGHT,
            "loss_dice": options.DICE_WEIGHT,
        },
        no_object_weight=options.NO_OBJECT_WEIGHT,
        num_points=options.TRAIN_NUM_POINTS,
        oversample_ratio=options.OVERSAMPLE_RATIO,
        importance_sample_ratio=options.IMPORTANCE_SAMPLE_RATIO,
    )


def usable_device(name: str) -> torch.device:
    """The device called `name`; the CPU, with one warning, for CUDA on a machine without."""
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        _logger.warning("MODEL.DEVICE is %r but this machine has no usable CUDA device: running on the CPU", name)
        return torch.device("cpu")
    return device
