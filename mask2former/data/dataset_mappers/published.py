"""The five published mappers under their names: each is DatasetMapper with its own preset."""

from __future__ import annotations

from typing import ClassVar

from mask2former.config import CfgNode
from mask2former.data.mapper import DatasetMapper


class PublishedMapper(DatasetMapper):
    """Built from ``(cfg, is_train)``; its ``augmentations`` are a plain list, which may be changed or replaced."""

    mapper_name: ClassVar[str]  # the value of INPUT.DATASET_MAPPER_NAME
    target: ClassVar[str]  # what is trained; a registered subclass is asked for it

    def __init__(self, cfg: CfgNode, is_train: bool = True) -> None:
        """Read ``INPUT`` and the metadata of the first training data set.

        Raises:
            ConfigError: a value of ``INPUT`` is wrong.
        """
        named = cfg.clone()
        named.defrost()
        named.INPUT.DATASET_MAPPER_NAME = self.mapper_name
        vars(self).update(vars(DatasetMapper.from_config(named, is_train)))
        self.augmentations = list(self._steps.augmentations)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> PublishedMapper:
        """Do the same as calling the class."""
        return cls(cfg, is_train)


class MaskFormerSemanticDatasetMapper(PublishedMapper):
    """Semantic segmentation: one mask for each class of the image."""

    mapper_name, target = "mask_former_semantic", "semantic"


class MaskFormerInstanceDatasetMapper(PublishedMapper):
    """Instances, resized and cropped."""

    mapper_name, target = "mask_former_instance", "instance"


class MaskFormerPanopticDatasetMapper(PublishedMapper):
    """Things and stuff, resized and cropped."""

    mapper_name, target = "mask_former_panoptic", "panoptic"


class COCOInstanceNewBaselineDatasetMapper(PublishedMapper):
    """Instances with large-scale jitter."""

    mapper_name, target = "coco_instance_lsj", "instance"


class COCOPanopticNewBaselineDatasetMapper(PublishedMapper):
    """Things and stuff with large-scale jitter."""

    mapper_name, target = "coco_panoptic_lsj", "panoptic"
