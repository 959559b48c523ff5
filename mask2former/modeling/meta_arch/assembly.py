"""Build the parts of a model that a config names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from mask2former.config import as_mask_former, own_names
from mask2former.config.merging import FaultCollector, format_faults
from mask2former.errors import ConfigError
from mask2former.modeling.backbone import build_backbone
from mask2former.modeling.criterion import parse_losses
from mask2former.modeling.execution import compile_model, parse_precision
from mask2former.modeling.fast import speed_up
from mask2former.modeling.interfaces import Criterion, SegmentationHead, TransformerDecoder
from mask2former.modeling.layers import checkpoint_activations
from mask2former.modeling.meta_arch.mask_former_head import ENCODED, MULTI_SCALE, PIXELS
from mask2former.modeling.registry import (
    CRITERION_REGISTRY,
    LOSS_REGISTRY,
    MATCHER_REGISTRY,
    META_ARCH_REGISTRY,
    POSTPROCESSING_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    TRANSFORMER_DECODER_REGISTRY,
    build_from_config,
)
from mask2former.modeling.transformer_decoder import StandardTransformerDecoder
from mask2former.structures import ShapeSpec

_logger = logging.getLogger(__name__)


def build_model(cfg: Any, *, accelerated: bool | None = None) -> nn.Module:
    """Return the model of MODEL.META_ARCHITECTURE with random weights, on MODEL.DEVICE.

    It is compiled if MODEL.COMPILE says so. ``accelerated``: whether to replace plain layers by faster twins (see
    ``fast``); None: on a CPU.

    Raises:
        ConfigError: names are not registered, or parts do not fit: all of them.
    """
    shared = as_mask_former(cfg)
    try:
        return _build_model(shared, accelerated=accelerated)
    except ConfigError as error:
        faults = find_model_faults(shared)
        if len(faults) < 2:
            faults = []
        known = [] if any(fault in str(error) for fault in faults) else [str(error)]
        raise ConfigError(own_names(format_faults([*known, *faults]), cfg)) from error


def find_model_faults(cfg: Any) -> list[str]:
    """Return a line for each name that is not registered and each part that does not fit; nothing is computed."""
    names, collector = cfg.MODEL.SEM_SEG_HEAD, FaultCollector()
    attempt = collector.attempt
    _check_counts(cfg, collector.faults)
    sizes_fit = not collector.faults
    device = attempt(usable_device, cfg.MODEL.DEVICE)
    attempt(parse_precision, cfg.MODEL.PRECISION, device)
    architecture = attempt(META_ARCH_REGISTRY.lookup, cfg.MODEL.META_ARCHITECTURE)
    if architecture is not None and not architecture.__module__.startswith(f"{__package__}."):
        return collector.faults  # its parts are its own
    with torch.device("meta"):
        backbone = attempt(build_backbone, cfg)
        shapes = _stand_in_shapes(cfg) if backbone is None else backbone.output_shape()
        attempt(SEM_SEG_HEADS_REGISTRY.lookup, names.NAME)
        attempt(_build_pixel_decoder if sizes_fit else _find_pixel_decoder, cfg, shapes)
        if names.NAME not in _PREDICTOR_BUILDERS:
            attempt(build_transformer_decoder if sizes_fit else _find_transformer_decoder, cfg, shapes)
        attempt(build_criterion, cfg)
    for name in attempt(parse_losses, cfg.MODEL.MASK_FORMER.LOSSES) or ():
        attempt(LOSS_REGISTRY.lookup, name)
    attempt(POSTPROCESSING_REGISTRY.lookup, cfg.MODEL.MASK_FORMER.POSTPROCESSING)
    return collector.faults


def _stand_in_shapes(cfg: Any) -> dict[str, ShapeSpec]:
    """Return features of the names that the head wants, where the backbone cannot say its own."""
    head, single = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE
    names = [*head.IN_FEATURES, *head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES]
    names += [] if single in (MULTI_SCALE, ENCODED, PIXELS) else [single]
    return {name: ShapeSpec(channels=256, stride=4 << index) for index, name in enumerate(dict.fromkeys(names))}


def _build_model(cfg: Any, *, accelerated: bool | None) -> nn.Module:
    faults: list[str] = []
    _check_counts(cfg, faults)
    if faults:
        raise ConfigError(format_faults(faults))
    meta_architecture = META_ARCH_REGISTRY.lookup(cfg.MODEL.META_ARCHITECTURE)
    device = usable_device(cfg.MODEL.DEVICE)
    parse_precision(cfg.MODEL.PRECISION, device)
    model = build_from_config(meta_architecture, cfg).to(device)
    speed_up(model, cfg, is_wanted=device.type == "cpu" if accelerated is None else accelerated)
    if cfg.MODEL.MASK_FORMER.USE_CHECKPOINT:
        _checkpoint_decoders(model)
    return compile_model(model, cfg.MODEL.COMPILE)


def build_sem_seg_head(cfg: Any, input_shape: dict[str, ShapeSpec]) -> SegmentationHead:
    """Return the head of MODEL.SEM_SEG_HEAD.NAME with its pixel decoder and predictor."""
    name = cfg.MODEL.SEM_SEG_HEAD.NAME
    head = SEM_SEG_HEADS_REGISTRY.lookup(name)
    build_predictor: Callable[..., Any] = _PREDICTOR_BUILDERS.get(name, build_transformer_decoder)
    return build_from_config(head, cfg, _build_pixel_decoder(cfg, input_shape), build_predictor(cfg, input_shape))


def _build_pixel_decoder(cfg: Any, input_shape: dict[str, ShapeSpec]) -> Any:
    return build_from_config(_find_pixel_decoder(cfg), cfg, input_shape)


def _find_pixel_decoder(cfg: Any, *_: Any) -> Any:
    key = "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME"
    return SEM_SEG_HEADS_REGISTRY.lookup(cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME, key=key)


def _find_transformer_decoder(cfg: Any, *_: Any) -> Any:
    return TRANSFORMER_DECODER_REGISTRY.lookup(cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME)


def build_transformer_decoder(cfg: Any, input_shape: dict[str, ShapeSpec]) -> TransformerDecoder:
    """Return the decoder of MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME."""
    return build_from_config(_find_transformer_decoder(cfg), cfg, transformer_in_channels(cfg, input_shape))


def build_class_decoder(cfg: Any, input_shape: dict[str, ShapeSpec]) -> StandardTransformerDecoder:
    """Return MaskFormer's decoder with one query per class, whatever decoder the config names."""
    arguments = StandardTransformerDecoder.from_config(cfg, transformer_in_channels(cfg, input_shape))
    return StandardTransformerDecoder(**{**arguments, "num_classes": None})


def build_pixel_classifier(cfg: Any, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Return a 1x1 convolution from mask features to class logits."""
    classifier = nn.Conv2d(cfg.MODEL.SEM_SEG_HEAD.MASK_DIM, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, kernel_size=1)
    nn.init.kaiming_normal_(classifier.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(classifier.bias)  # type: ignore[arg-type]
    return classifier


# Heads that do not take the decoder of the config.
_PREDICTOR_BUILDERS: Mapping[str, Callable[[Any, dict[str, ShapeSpec]], nn.Module]] = MappingProxyType(
    {"PerPixelBaselineHead": build_pixel_classifier, "PerPixelBaselinePlusHead": build_class_decoder}
)


def transformer_in_channels(cfg: Any, input_shape: dict[str, ShapeSpec]) -> int:
    """Return the channels of the maps that MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE names.

    Raises:
        ConfigError: the name is neither one of the pixel decoder's maps nor a feature of the backbone.
    """
    head, name = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE
    channels = {feature: shape.channels for feature, shape in input_shape.items()}
    channels.update({MULTI_SCALE: head.CONVS_DIM, ENCODED: head.CONVS_DIM, PIXELS: head.MASK_DIM})
    found = channels.get(name)
    if found is None:
        raise ConfigError(
            f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE: expected one of {', '.join(channels)}; found {name!r}"
        )
    return found


def build_criterion(cfg: Any) -> Criterion:
    """Return the criterion of MODEL.MASK_FORMER.CRITERION, with the matcher of MATCHER and the losses of LOSSES."""
    options = cfg.MODEL.MASK_FORMER
    matcher = build_from_config(MATCHER_REGISTRY.lookup(options.MATCHER), cfg)
    return build_from_config(CRITERION_REGISTRY.lookup(options.CRITERION), cfg, matcher)


def usable_device(name: str) -> torch.device:
    """Return the device ``name``, or, with one warning, the CPU if the machine has no device of that kind.

    Raises:
        ConfigError: torch knows no such device, or the machine has fewer of the kind.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"MODEL.DEVICE: expected a device such as cuda, cuda:1 or cpu, found {name!r}") from error
    if device.type == "cuda":
        is_there = torch.cuda.is_available()
    else:
        is_there = device.type in ("cpu", "meta") or _can_allocate(device.type)
    if not is_there:
        _logger.warning(
            "MODEL.DEVICE is %r but this machine has no usable %s device: running on the CPU", name, device.type.upper()
        )
        return torch.device("cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"MODEL.DEVICE: this machine has {torch.cuda.device_count()} CUDA devices, found {name!r}")
    if device.index and not _can_allocate(device):
        raise ConfigError(f"MODEL.DEVICE: this machine has no {name}, expected one with a lower number")
    return device


def _can_allocate(device: str | torch.device) -> bool:
    """Return whether torch can allocate there; each backend reports a failure by another type of error."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, ImportError):  # NotImplementedError is a RuntimeError
        return False
    return True


def _checkpoint_decoders(model: nn.Module) -> None:
    head: Any = getattr(model, "sem_seg_head", None)
    if head is None or not checkpoint_activations(head):
        raise ConfigError(
            "MODEL.MASK_FORMER.USE_CHECKPOINT: no decoder of this model can compute its layers again; expected "
            "MSDeformAttnPixelDecoder or MultiScaleMaskedTransformerDecoder"
        )


def _check_counts(cfg: Any, faults: list[str]) -> None:
    """Add a line for each number that cannot be, and each pair of numbers that contradict each other."""
    mask_former, head = cfg.MODEL.MASK_FORMER, cfg.MODEL.SEM_SEG_HEAD
    for key, count in {
        "MASK_FORMER.NUM_OBJECT_QUERIES": mask_former.NUM_OBJECT_QUERIES,
        "MASK_FORMER.TRAIN_NUM_POINTS": mask_former.TRAIN_NUM_POINTS,
        "SEM_SEG_HEAD.NUM_CLASSES": head.NUM_CLASSES,
    }.items():
        if count < 1:
            faults.append(f"MODEL.{key}: expected at least 1, found {count}")
    for key, size, name, heads in (
        ("MASK_FORMER.HIDDEN_DIM", mask_former.HIDDEN_DIM, "MASK_FORMER.NHEADS", mask_former.NHEADS),
        (
            *("SEM_SEG_HEAD.CONVS_DIM", head.CONVS_DIM, "SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS"),
            head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS,
        ),
    ):
        is_read = "HEAD" not in key or head.PIXEL_DECODER_NAME == "MSDeformAttnPixelDecoder"
        if is_read and (heads < 1 or size < 1 or size % heads):
            faults.append(f"MODEL.{key}: expected a multiple of {name} ({heads}), found {size}")
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    if len(mean) != len(std) or not all(std):
        faults.append(f"MODEL.PIXEL_MEAN and PIXEL_STD: expected as many, none 0 in the second: {mean}, {std}")
