"""Our mappers for the loaders of detectron2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mask2former.data.clip_mapper import ClipMapper
from mask2former.data.mapper import DatasetMapper as OurDatasetMapper
from mask2former.data.presets import preset_of
from mask2former.data.transforms import Augmentation, AugmentationList
from mask2former.errors import ConfigError
from mask2former.integrations.detectron2.augmentations import DetectronAugmentation
from mask2former.integrations.detectron2.structures import instances_to_detectron2
from mask2former.modeling.meta_arch.inputs import label_map_of


class DatasetMapper:
    """The mapper that INPUT.DATASET_MAPPER_NAME names, with detectron2's Instances and BitMasks as targets.

    Semantic targets are given as ``sem_seg`` (H, W) too. Randomness follows NumPy's global generator, which the loaders
    of detectron2 seed in each worker.
    """

    def __init__(self, cfg: Any, is_train: bool = True, *, augmentations: Sequence[Any] | None = None) -> None:
        """``augmentations``, of detectron2 or ours, replace those of INPUT.

        Raises:
            ConfigError: a value of INPUT is wrong, or a video model is to be trained with other augmentations.
        """
        self.is_semantic = is_train and preset_of(cfg).target == "semantic"
        self.mapper: Any
        if is_train and preset_of(cfg).clips:
            if augmentations is not None:
                raise ConfigError("augmentations: those of clips are the ones of INPUT")
            self.mapper = ClipMapper.from_config(cfg)
            return
        self.mapper = OurDatasetMapper.from_config(cfg, is_train)
        if augmentations is not None:
            self.mapper.augmentations = AugmentationList([_as_ours(augmentation) for augmentation in augmentations])

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict; errors as of our mapper."""
        rng = np.random.default_rng(np.random.randint(2**31, size=4))
        sample = self.mapper(dataset_dict, rng)
        if "instances" not in sample:
            return sample
        found = sample["instances"]
        if self.is_semantic:
            sample["sem_seg"] = label_map_of(found, fill=self.mapper.ignore_label)
        is_clip = isinstance(found, list)
        sample["instances"] = [instances_to_detectron2(f) for f in found] if is_clip else instances_to_detectron2(found)
        return sample


def _as_ours(augmentation: Any) -> Augmentation:
    return augmentation if isinstance(augmentation, Augmentation) else DetectronAugmentation(augmentation)
