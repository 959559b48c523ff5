"""The presets of ``INPUT.DATASET_MAPPER_NAME``, and their augmentations with the values of ``INPUT``."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from mask2former.config import CfgNode, Registry, build_from_config, is_oneformer
from mask2former.data.transforms import (
    AUGMENTATION_REGISTRY,
    BLENDS,
    Augmentation,
    AugmentationList,
    ByClip,
    ByFrame,
    ClipAugmentation,
    ClipAugmentationList,
    ColorAugSSD,
    FixedSizeCrop,
    PadToDivisible,
    PanningCrop,
    RandomBlend,
    RandomCrop,
    RandomCropCategoryAreaConstraint,
    RandomFlip,
    RandomRotation,
    ResizeScale,
    ResizeShortestEdge,
)
from mask2former.data.transforms.transform import IMAGE_FILL, Fill
from mask2former.errors import ConfigError
from mask2former.modeling import takes_clips

_FLIPS = ("horizontal", "vertical", "flip_by_clip")
_BY_CLIP = "_by_clip"  # ends a value of INPUT that is drawn once for all frames of a clip


@dataclass(frozen=True)
class MapperPreset:
    """The properties of a value of ``INPUT.DATASET_MAPPER_NAME``.

    ``target`` is semantic, instance or panoptic. ``large_scale_jitter`` replaces resizing and cropping by scale jitter
    and a crop of fixed size. ``keep_empty``: an object that cropping removed is kept, with an empty mask. ``clips``:
    the model is trained on clips of several frames. ``tasks``: a task is drawn for each image, as OneFormer needs it.
    """

    target: str
    large_scale_jitter: bool = False
    keep_empty: bool = False
    clips: bool = False
    tasks: bool = False


# Parity: the published mappers differ in keep_empty (test_mapper_keeps_empty_targets_as_published);
# INPUT.KEEP_EMPTY_TARGETS false drops them everywhere.
MAPPER_PRESETS: Mapping[str, MapperPreset] = MappingProxyType(
    {
        "mask_former_semantic": MapperPreset("semantic"),
        "mask_former_instance": MapperPreset("instance", keep_empty=True),
        "mask_former_panoptic": MapperPreset("panoptic", keep_empty=True),
        "coco_instance_lsj": MapperPreset("instance", large_scale_jitter=True),
        "coco_panoptic_lsj": MapperPreset("panoptic", large_scale_jitter=True, keep_empty=True),
    }
)

# Presets of our mappers, and mappers from outside: a class with `from_config`, or a function of the config. Its
# attribute `target` says what it trains.
MAPPER_REGISTRY = Registry("mapper", key="INPUT.DATASET_MAPPER_NAME")
UNIFIED = "oneformer_unified"
UNIFIED_PRESETS: Mapping[str, MapperPreset] = MappingProxyType(
    {
        UNIFIED: MapperPreset("panoptic", keep_empty=True, tasks=True),
        "coco_unified_lsj": MapperPreset("panoptic", large_scale_jitter=True, keep_empty=True, tasks=True),
    }
)
for _name, _preset in {**MAPPER_PRESETS, **UNIFIED_PRESETS}.items():
    MAPPER_REGISTRY.register(_preset, name=_name)
_DEFAULT_MAPPER = "mask_former_semantic"
CLIP_PRESET = MapperPreset("instance", keep_empty=True, clips=True)


def lookup_mapper(cfg: CfgNode) -> Any:
    """Return the preset or mapper that ``INPUT.DATASET_MAPPER_NAME`` names.

    Where the default stands, OneFormer gets its own mapper, as its published config files leave the name out.

    Raises:
        ConfigError: there is none of this name.
    """
    name = cfg.INPUT.DATASET_MAPPER_NAME
    return MAPPER_REGISTRY.lookup(UNIFIED if is_oneformer(cfg) and name == _DEFAULT_MAPPER else name)


def preset_of(cfg: CfgNode) -> MapperPreset:
    """Return the preset that ``INPUT.DATASET_MAPPER_NAME`` names.

    A video model gets clips, whichever published name is given. A mapper from outside has its own ``target``, by
    default instance.

    Raises:
        ConfigError: there is none of this name.
    """
    mapper, is_video = lookup_mapper(cfg), takes_clips(cfg.MODEL.META_ARCHITECTURE)
    if isinstance(mapper, MapperPreset):
        return CLIP_PRESET if is_video else mapper  # published video configs leave the name alone
    return MapperPreset(getattr(mapper, "target", "instance"), keep_empty=True, clips=is_video)


def build_train_augmentations(cfg: CfgNode, preset: MapperPreset, *, ignore_label: int) -> AugmentationList:
    """Return the augmentations of a preset, with the values of ``INPUT``.

    Raises:
        ConfigError: a value is wrong.
    """
    try:
        if preset.large_scale_jitter:
            return AugmentationList(_jitter_augmentations(cfg))
        return AugmentationList(_crop_augmentations(cfg, preset, ignore_label))
    except ValueError as error:
        raise ConfigError(f"INPUT: {error}") from error


def build_test_augmentations(cfg: CfgNode) -> AugmentationList:
    """Return the resizing of inference; none if ``INPUT.MIN_SIZE_TEST`` is 0."""
    try:
        return AugmentationList([ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)])
    except ValueError as error:
        raise ConfigError(f"INPUT.MIN_SIZE_TEST: {error}") from error


def build_clip_augmentations(cfg: CfgNode, values: CfgNode, *, key: str) -> ClipAugmentationList:
    """Return the augmentations of clips, from the ``values`` under ``key``: ``INPUT`` or ``INPUT.PSEUDO``.

    Frames share their size, so resizing is drawn once a clip. Crops of videos are drawn once, too, while those of
    images pan.

    Raises:
        ConfigError: a value is wrong.
    """
    try:
        steps: list[ClipAugmentation] = []
        if values.CROP.ENABLED:
            crop = RandomCrop(values.CROP.TYPE, values.CROP.SIZE)
            steps.append(ByClip(crop) if values is cfg.INPUT else PanningCrop(crop))
        sampling = values.MIN_SIZE_TRAIN_SAMPLING.removesuffix(_BY_CLIP)
        steps.append(ByClip(ResizeShortestEdge(values.MIN_SIZE_TRAIN, values.MAX_SIZE_TRAIN, sampling)))
        steps += [ByClip(jitter) for jitter in _colour(cfg)]
        together = ByClip if cfg.INPUT.RANDOM_FLIP.endswith(_BY_CLIP) else ByFrame
        steps += [together(flip) for flip in _flip(cfg)]
        named = [_build_augmentation(name, cfg, key=key) for name in values.AUGMENTATIONS]
        steps += [step if isinstance(step, ClipAugmentation) else ByFrame(step) for step in named]
        return ClipAugmentationList(steps)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from error


def _build_augmentation(name: str, cfg: CfgNode, *, key: str = "INPUT") -> Any:
    return build_from_config(AUGMENTATION_REGISTRY.lookup(name, key=f"{key}.AUGMENTATIONS"), cfg)


def _image_augmentations(cfg: CfgNode) -> list[Augmentation]:
    """Return those of ``INPUT.AUGMENTATIONS``.

    Raises:
        ConfigError: a name is not registered, or is that of an augmentation for clips only.
    """
    built = [_build_augmentation(name, cfg) for name in cfg.INPUT.AUGMENTATIONS]
    for name, augmentation in zip(cfg.INPUT.AUGMENTATIONS, built, strict=True):
        if isinstance(augmentation, ClipAugmentation):
            raise ConfigError(f"INPUT.AUGMENTATIONS: {name} is for clips, and the model takes images")
    return built


def _rotation(cfg: CfgNode) -> Augmentation:
    """Return a rotation as strong as in the published video models, like the blends below."""
    center = ((0.4, 0.4), (0.6, 0.6))
    return RandomRotation((-15, 15), expand=False, center=center, image_fill=_fill(cfg, 0))


def _blend(name: str, cfg: CfgNode) -> Augmentation:
    return RandomBlend(name, image_format=cfg.INPUT.FORMAT)


AUGMENTATION_REGISTRY.register(_rotation, name="rotation")
for _name in BLENDS:
    AUGMENTATION_REGISTRY.register(functools.partial(_blend, _name), name=_name)


def _jitter_augmentations(cfg: CfgNode) -> list[Augmentation]:
    side = cfg.INPUT.IMAGE_SIZE
    if side < 1:
        raise ConfigError(f"INPUT.IMAGE_SIZE: expected at least 1 pixel, found {side}")
    augmentations: list[Augmentation] = _flip(cfg)
    augmentations += _colour(cfg)  # before padding, which keeps its grey
    augmentations += _image_augmentations(cfg)
    augmentations.append(ResizeScale(cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE, side, side))
    augmentations.append(FixedSizeCrop((side, side), pad_value=_fill(cfg, IMAGE_FILL)))
    return augmentations


def _crop_augmentations(cfg: CfgNode, preset: MapperPreset, ignore_label: int) -> list[Augmentation]:
    sampling = cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING.removesuffix(_BY_CLIP)
    augmentations: list[Augmentation] = [
        ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, sampling)
    ]
    crop = cfg.INPUT.CROP
    if crop.ENABLED and preset.target == "instance":
        augmentations.append(RandomCrop(crop.TYPE, crop.SIZE))
    elif crop.ENABLED:
        augmentations.append(
            RandomCropCategoryAreaConstraint(
                crop.TYPE,
                crop.SIZE,
                single_category_max_area=crop.SINGLE_CATEGORY_MAX_AREA,
                ignored_category=ignore_label,
            )
        )
    augmentations += [*_colour(cfg), *_flip(cfg), *_image_augmentations(cfg)]
    if cfg.INPUT.SIZE_DIVISIBILITY > 0:
        augmentations.append(PadToDivisible(cfg.INPUT.SIZE_DIVISIBILITY, image_fill=_fill(cfg, IMAGE_FILL)))
    return augmentations


def _colour(cfg: CfgNode) -> list[Augmentation]:
    """Colour jitter, which has a meaning for colours alone."""
    return [ColorAugSSD(cfg.INPUT.FORMAT)] if cfg.INPUT.COLOR_AUG_SSD and not cfg.INPUT.CHANNELS else []


def _fill(cfg: CfgNode, usual: int) -> Fill:
    """What comes from outside of an image: of channels their means, which the model takes for nothing."""
    return tuple(cfg.MODEL.PIXEL_MEAN) if cfg.INPUT.CHANNELS else usual


def _flip(cfg: CfgNode) -> list[Augmentation]:
    direction = cfg.INPUT.RANDOM_FLIP
    if direction == "none":
        return []
    if direction not in _FLIPS:
        raise ValueError(f"RANDOM_FLIP must be one of none, {', '.join(_FLIPS)}, found {direction!r}")
    return [RandomFlip(horizontal=direction != "vertical", vertical=direction == "vertical")]
