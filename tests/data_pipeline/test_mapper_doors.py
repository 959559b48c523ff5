"""Mappers and augmentations from outside, chosen by the config; what is trained on clips says so itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mask2former.config import CfgNode, get_cfg
from mask2former.data import MAPPER_REGISTRY, DatasetMapper
from mask2former.data.clip_mapper import ClipMapper
from mask2former.data.loader import build_mapper
from mask2former.data.presets import MAPPER_PRESETS, build_train_augmentations, preset_of
from mask2former.data.transforms import (
    AUGMENTATION_REGISTRY,
    Augmentation,
    ClipAugmentation,
    FixedSizeCrop,
    NoOpTransform,
    Transform,
)
from mask2former.errors import ConfigError
from mask2former.modeling import META_ARCH_REGISTRY
from mask2former.modeling.meta_arch.mask_former import VideoMaskFormer


@pytest.fixture(autouse=True)
def _own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (MAPPER_REGISTRY, AUGMENTATION_REGISTRY, META_ARCH_REGISTRY):
        monkeypatch.setattr(registry, "_obj_map", dict(registry._obj_map))


def config(*options: Any) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_list(options)
    return cfg


class Nothing(Augmentation):
    def sample(self, rng: np.random.Generator, size: tuple[int, int], sem_seg: np.ndarray | None = None) -> Transform:
        return NoOpTransform()


class MovingNothing(ClipAugmentation):
    def sample(self, rng: np.random.Generator, size: tuple[int, int], *, num_frames: int) -> list[Transform]:
        return [NoOpTransform()] * num_frames


def test_mapper_from_outside_is_chosen_by_name_and_says_its_target() -> None:
    @MAPPER_REGISTRY.register()
    class MyMapper(DatasetMapper):
        target = "panoptic"

    @MAPPER_REGISTRY.register(name="plain")
    def build_plain(cfg: CfgNode) -> Any:
        return cfg.INPUT.FORMAT.lower

    cfg = config("INPUT.DATASET_MAPPER_NAME", "MyMapper")
    mapper = build_mapper(cfg)
    assert type(mapper) is MyMapper
    assert mapper.preset is not None
    assert mapper.preset.target == preset_of(cfg).target == "panoptic"
    cfg = config("INPUT.DATASET_MAPPER_NAME", "plain")
    assert build_mapper(cfg)() == "bgr"
    assert preset_of(cfg).target == "instance"
    with pytest.raises(ConfigError, match=r"INPUT\.DATASET_MAPPER_NAME: .*coco_panoptic_lsj.*did you mean MyMapper\?"):
        build_mapper(config("INPUT.DATASET_MAPPER_NAME", "MyMaper"))


def test_subclass_of_the_video_model_under_another_name_gets_clips() -> None:
    META_ARCH_REGISTRY.register(type("MyVideoModel", (VideoMaskFormer,), {}))
    cfg = config("MODEL.META_ARCHITECTURE", "MyVideoModel")
    assert preset_of(cfg).clips
    assert isinstance(build_mapper(cfg), ClipMapper)
    assert not preset_of(config("MODEL.META_ARCHITECTURE", "MaskFormer")).clips


@pytest.mark.parametrize("preset", ["coco_panoptic_lsj", "mask_former_instance"])
def test_named_augmentations_of_images_come_before_the_size_is_fixed(preset: str) -> None:
    AUGMENTATION_REGISTRY.register(lambda cfg: Nothing(), name="nothing")
    cfg = config("INPUT.AUGMENTATIONS", ["nothing", "brightness"], "INPUT.IMAGE_SIZE", 64)
    names = [
        type(a).__name__ for a in build_train_augmentations(cfg, MAPPER_PRESETS[preset], ignore_label=255).augmentations
    ]
    place = names.index("Nothing")
    assert names[place + 1] == "RandomBlend"
    assert names[-1] == (FixedSizeCrop.__name__ if preset.startswith("coco") else "RandomBlend")
    plain = build_train_augmentations(config("INPUT.IMAGE_SIZE", 64), MAPPER_PRESETS[preset], ignore_label=255)
    assert [name for name in names if name not in ("Nothing", "RandomBlend")] == [
        type(a).__name__ for a in plain.augmentations
    ]


def test_augmentation_of_clips_is_refused_for_images() -> None:
    AUGMENTATION_REGISTRY.register(lambda cfg: MovingNothing(), name="moving")
    options = ["INPUT.AUGMENTATIONS", ["moving"], "MODEL.META_ARCHITECTURE"]
    mapper = build_mapper(config(*options, "VideoMaskFormer"))
    assert type(mapper.augmentations.augmentations[-1]) is MovingNothing
    with pytest.raises(ConfigError, match=r"INPUT\.AUGMENTATIONS: moving is for clips"):
        build_mapper(config(*options, "MaskFormer"))
