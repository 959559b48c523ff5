"""Map a dataset dict to a model input: read files, augment, build targets."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch

from mask2former.config import CfgNode
from mask2former.data.catalog import DatasetCatalog, DatasetDict, MetadataCatalog, is_video, name_of
from mask2former.data.presets import (
    MapperPreset,
    build_test_augmentations,
    build_train_augmentations,
    preset_of,
)
from mask2former.data.targets import (
    VOID_ID,
    check_labels,
    crowds_of,
    ignored_after,
    instance_targets,
    panoptic_targets,
    semantic_from_panoptic,
    semantic_targets,
    void_of_panoptic,
)
from mask2former.data.transforms import Augmentation, AugmentationList
from mask2former.errors import ConfigError, DatasetError
from mask2former.files.channels import read_channels
from mask2former.files.images import FORMATS, FULL_BITS, check_image_bits, exif_note, read_image
from mask2former.files.maps import read_label_map, read_panoptic_ids
from mask2former.structures import Instances
from mask2former.structures.ids import labels_to_train_ids

DEFAULT_IGNORE_LABEL = 255

_Targets = tuple[torch.Tensor, Instances, torch.Tensor | None]  # the image, its targets, and which pixels train nothing


class DatasetMapper:
    """Maps the dataset dict of an image to one model input; for inference also that of a video, with all its frames.

    Training: image (C, H, W) uint8 and instances with gt_classes (N,) int64, gt_masks (N, H, W) bool, gt_boxes; N
    may be 0. With ``ignore_regions``, where there is such a pixel, also ignore_mask (H, W) bool: void, ignored labels
    and crowds, but for what is an object too. Otherwise only the image, resized, a list of them for a video; ``height``
    and ``width`` stay those of the file. The other entries of the dict are kept, but for the annotations.
    """

    def __init__(
        self,
        augmentations: AugmentationList | list[Augmentation],
        *,
        image_format: str,
        preset: MapperPreset | None = None,
        num_classes: int | None = None,
        ignore_label: int = DEFAULT_IGNORE_LABEL,
        label_ids: Mapping[int, int] | None = None,
        image_bits: int = FULL_BITS,
        num_channels: int = 0,
        ignore_regions: bool = False,
    ) -> None:
        """``preset`` None maps for inference; ``num_classes`` None accepts any label; ``image_bits`` as in read_image.

        ``num_channels`` above 0: images are read by read_channels.

        ``label_ids`` turns the ids of label files into classes, or the ignore label; None: they are classes.
        ``ignore_regions``: training samples say which pixels train nothing.
        """
        if image_format not in FORMATS:
            raise ConfigError(f"INPUT.FORMAT must be one of {', '.join(FORMATS)}, found {image_format!r}")
        self.augmentations = augmentations
        self.image_format, self.image_bits = image_format, check_image_bits(image_bits)
        self.num_channels = num_channels
        self.preset = preset
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.label_ids = label_ids
        self.ignore_regions = ignore_regions

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> DatasetMapper:
        """Return the mapper of ``INPUT``; the ignore label is that of the first training data set.

        Raises:
            ConfigError: a value of ``INPUT`` is wrong.
        """
        if not is_train:
            return cls(
                build_test_augmentations(cfg),
                image_format=cfg.INPUT.FORMAT,
                image_bits=cfg.INPUT.IMAGE_BITS,
                num_channels=cfg.INPUT.CHANNELS,
            )
        preset = preset_of(cfg)
        ignore_label, label_ids = DEFAULT_IGNORE_LABEL, None
        if cfg.DATASETS.TRAIN:
            DatasetCatalog.find(cfg.DATASETS.TRAIN[0])  # its metadata come with it
            metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
            ignore_label = metadata.get("ignore_label", DEFAULT_IGNORE_LABEL)
            label_ids = metadata.get("label_ids")
        if not cfg.INPUT.KEEP_EMPTY_TARGETS:
            preset = replace(preset, keep_empty=False)
        return cls(
            cls.build_augmentations(cfg, preset, ignore_label=ignore_label),
            image_format=cfg.INPUT.FORMAT,
            preset=preset,
            num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            ignore_label=ignore_label,
            label_ids=label_ids,
            image_bits=cfg.INPUT.IMAGE_BITS,
            num_channels=cfg.INPUT.CHANNELS,
            ignore_regions=cfg.MODEL.MASK_FORMER.IGNORE_REGIONS,
            **cls.arguments(cfg),
        )

    @classmethod
    def arguments(cls, cfg: CfgNode) -> dict[str, Any]:
        """Return further arguments of a training mapper that a config gives; override this for those of your own."""
        return {}

    @classmethod
    def build_augmentations(cls, cfg: CfgNode, preset: MapperPreset, *, ignore_label: int) -> AugmentationList:
        """Return the augmentations of training; override this to train with others."""
        return build_train_augmentations(cfg, preset, ignore_label=ignore_label)

    @property
    def _steps(self) -> AugmentationList:
        """Return the augmentations, which may be a plain list, as in detectron2."""
        given = self.augmentations
        return given if isinstance(given, AugmentationList) else AugmentationList(given)

    def __call__(self, dataset_dict: DatasetDict, rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Map one image; all random numbers come from ``rng``.

        Raises:
            DatasetError: a file is missing, damaged, or contradicts another or the annotations.
        """
        return self.map_to_target(dataset_dict, None if self.preset is None else self.preset.target, rng)

    def map_to_target(
        self, dataset_dict: DatasetDict, target: str | None, rng: np.random.Generator | None = None
    ) -> dict[str, Any]:
        """Map one image with targets of a kind, semantic, instance or panoptic, or for inference if it is None."""
        rng = np.random.default_rng() if rng is None else rng
        names = dataset_dict["file_names"] if is_video(dataset_dict) else [dataset_dict["file_name"]]
        form, bits, channels = self.image_format, self.image_bits, self.num_channels
        read = partial(read_checked_image, image_format=form, bits=bits, num_channels=channels)
        image = read(dataset_dict, file_name=names[0])
        size = image.shape[:2]
        sample = {k: v for k, v in dataset_dict.items() if k not in ("annotations", "segments_info")}
        sample.setdefault("height", size[0])
        sample.setdefault("width", size[1])
        if target is None:
            transform = self._steps.sample(rng, size, image=image)
            others = (read(sample, file_name=name) for name in names[1:])
            frames = [image_to_tensor(transform.apply_image(frame)) for frame in itertools.chain([image], others)]
            sample["image"] = frames if is_video(dataset_dict) else frames[0]
            return sample
        build_targets = {"semantic": self._semantic, "instance": self._instance, "panoptic": self._panoptic}
        build = build_targets[target]
        sample["image"], sample["instances"], ignored = build(dataset_dict, image, rng)
        if ignored is not None and ignored.any():
            sample["ignore_mask"] = ignored
        return sample

    def _semantic(self, record: DatasetDict, image: np.ndarray, rng: np.random.Generator) -> _Targets:
        labels = self._read_labels(record, image.shape[:2], _read_ids_if_any(record, image.shape[:2]))
        transform = self._steps.sample(rng, image.shape[:2], labels, image=image)
        moved = transform.apply_segmentation(labels, fill=self.ignore_label)
        targets = semantic_targets(moved, ignore_label=self.ignore_label)
        ignored = ignored_after(labels == self.ignore_label, transform, targets) if self.ignore_regions else None
        return image_to_tensor(transform.apply_image(image)), targets, ignored

    def _panoptic(self, record: DatasetDict, image: np.ndarray, rng: np.random.Generator) -> _Targets:
        assert self.preset is not None
        size = image.shape[:2]
        if "pan_seg_file_name" not in record or "segments_info" not in record:
            raise lacks(record, "pan_seg_file_name and segments_info", "panoptic")
        ids = read_panoptic_ids(record["pan_seg_file_name"])
        _check_map_size(ids, size, record, "pan_seg_file_name")
        labels = self._read_labels(record, size, ids) if self._steps.needs_sem_seg else None
        transform = self._steps.sample(rng, size, labels, image=image)
        moved = transform.apply_segmentation(ids, fill=VOID_ID)
        targets = panoptic_targets(moved, record["segments_info"], keep_empty=self.preset.keep_empty)
        ignored = None
        if self.ignore_regions:
            ignored = ignored_after(void_of_panoptic(ids, record["segments_info"]), transform, targets)
        return image_to_tensor(transform.apply_image(image)), targets, ignored

    def _instance(self, record: DatasetDict, image: np.ndarray, rng: np.random.Generator) -> _Targets:
        assert self.preset is not None
        size = image.shape[:2]
        if "annotations" not in record:
            raise lacks(record, "annotations", "instance")
        transform = self._steps.sample(rng, size, image=image)
        targets = instance_targets(
            record["annotations"],
            transform,
            size=size,
            context=str(record["file_name"]),
            keep_empty=self.preset.keep_empty,
        )
        ignored = None
        if self.ignore_regions:
            crowds = crowds_of(record["annotations"], size=size, context=str(record["file_name"]))
            ignored = ignored_after(crowds, transform, targets)
        return image_to_tensor(transform.apply_image(image)), targets, ignored

    def _read_labels(self, record: DatasetDict, size: tuple[int, int], ids: np.ndarray | None) -> np.ndarray:
        """Return the class labels (H, W) of the semantic file, else derived from panoptic ids."""
        file_name = record.get("sem_seg_file_name")
        if file_name is not None:
            labels = read_label_map(file_name)
            _check_map_size(labels, size, record, "sem_seg_file_name")
            if self.label_ids is not None:
                labels = labels_to_train_ids(labels, self.label_ids, file_name=str(file_name))
        elif ids is not None:
            file_name = record["pan_seg_file_name"]
            labels = semantic_from_panoptic(ids, record["segments_info"], ignore_label=self.ignore_label)
        else:
            raise lacks(record, "sem_seg_file_name", "semantic")
        if self.num_classes is not None:
            check_labels(labels, num_classes=self.num_classes, ignore_label=self.ignore_label, file_name=str(file_name))
        fits = 0 <= self.ignore_label <= np.iinfo(labels.dtype).max
        return labels if fits else labels.astype(np.int32)


def _read_ids_if_any(record: DatasetDict, size: tuple[int, int]) -> np.ndarray | None:
    if "sem_seg_file_name" in record or "pan_seg_file_name" not in record:
        return None
    ids = read_panoptic_ids(record["pan_seg_file_name"])
    _check_map_size(ids, size, record, "pan_seg_file_name")
    return ids


def image_form(cfg: CfgNode) -> dict[str, Any]:
    """Return how ``read_checked_image`` reads images by a config."""
    return {"image_format": cfg.INPUT.FORMAT, "bits": cfg.INPUT.IMAGE_BITS, "num_channels": cfg.INPUT.CHANNELS}


def read_checked_image(
    record: DatasetDict,
    image_format: str,
    *,
    file_name: str | None = None,
    bits: int = FULL_BITS,
    num_channels: int = 0,
) -> np.ndarray:
    """Return the image (H, W, C) of a dataset dict, or of the video frame ``file_name``.

    ``bits`` as in read_image; with ``num_channels`` as read_channels returns it.

    Raises:
        DatasetError: the file is missing or damaged, or its size is not that of the dict.
    """
    file_name = record["file_name"] if file_name is None else file_name
    if num_channels:
        image = read_channels(file_name, num_channels)
    else:
        image = read_image(file_name, image_format, bits=bits)
    size = image.shape[:2]
    expected = (record.get("height", size[0]), record.get("width", size[1]))
    if expected != size:
        raise DatasetError(
            f"{file_name}: image has (height, width) = {size}, its annotations say {expected}{exif_note(file_name)}"
        )
    return image


def _check_map_size(label_map: np.ndarray, size: tuple[int, int], record: DatasetDict, key: str) -> None:
    if label_map.shape != size:
        raise DatasetError(
            f"{record[key]} has (height, width) = {label_map.shape}, its image {record['file_name']} has {size}"
            f"{exif_note(record['file_name'])}"
        )


def lacks(record: DatasetDict, needed: str, target: str) -> DatasetError:
    """Return the error for a dataset dict without the entries that training for ``target`` needs."""
    return DatasetError(
        f"{name_of(record)}: {target} training needs {needed}, this data set has {sorted(record)}; "
        "INPUT.DATASET_MAPPER_NAME chooses what is trained"
    )


def image_to_tensor(image: np.ndarray) -> torch.Tensor:
    """Map an image (H, W, C) to its own contiguous tensor (C, H, W)."""
    planes = np.empty((image.shape[2], *image.shape[:2]), dtype=image.dtype)
    cv2.split(np.ascontiguousarray(image), list(planes))  # three times faster than a transposed copy
    return torch.from_numpy(planes)
