"""Make training clips of T frames, whose instances keep their identity, from videos or single images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mask2former.config import CfgNode
from mask2former.data.catalog import DatasetDict, is_video
from mask2former.data.mapper import image_to_tensor, lacks, read_checked_image
from mask2former.data.presets import build_clip_augmentations
from mask2former.data.targets import clip_targets, crowds_of, ignored_after
from mask2former.data.transforms import ClipAugmentation
from mask2former.errors import ConfigError
from mask2former.files.images import FORMATS, FULL_BITS, check_image_bits


@dataclass(frozen=True)
class FrameSampling:
    """Draws ``num_frames`` frames: one from the whole video, the others within ±``reach`` of it.

    Frames differ if there are enough, and are in the order of time unless ``shuffle`` is set.
    """

    num_frames: int
    reach: int
    shuffle: bool = False

    def sample(self, rng: np.random.Generator, length: int) -> list[int]:
        """Return indices of the frames in a video of ``length`` frames."""
        reference = int(rng.integers(length))
        near = range(max(0, reference - self.reach), min(length, reference + self.reach + 1))
        others = [time for time in near if time != reference] or [reference]
        count = self.num_frames - 1
        chosen = rng.choice(others, count, replace=count > len(others)).tolist()
        frames = sorted([*chosen, reference])
        return rng.permutation(frames).tolist() if self.shuffle else frames


class ClipMapper:
    """Maps a video's dataset dict to a clip of its frames; an image's to a clip of its own augmented copies.

    ``image`` is a list of T tensors (C, H, W) uint8, ``instances`` a list of T Instances that list the same N objects
    in the same order: gt_classes (N,), gt_masks (N, H, W), gt_boxes, and gt_ids (N,), which is -1 in a frame that does
    not show the object. N may be 0. All frames have one size. With ``ignore_regions``, where a
    crowd covers a pixel that is no object, also ignore_mask, a list of T masks (H, W) bool.
    """

    def __init__(
        self,
        augmentations: ClipAugmentation,
        *,
        image_augmentations: ClipAugmentation,
        sampling: FrameSampling,
        image_format: str,
        image_bits: int = FULL_BITS,
        num_channels: int = 0,
        ignore_regions: bool = False,
    ) -> None:
        if image_format not in FORMATS:
            raise ConfigError(f"INPUT.FORMAT must be one of {', '.join(FORMATS)}, found {image_format!r}")
        self.augmentations, self.image_augmentations = augmentations, image_augmentations
        self.sampling, self.ignore_regions = sampling, ignore_regions
        bits = check_image_bits(image_bits)
        self._read = partial(read_checked_image, image_format=image_format, bits=bits, num_channels=num_channels)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> ClipMapper:
        """Return the mapper of ``INPUT``; images are augmented as ``INPUT.PSEUDO`` says.

        Raises:
            ConfigError: a value of ``INPUT`` is wrong.
        """
        for key, least in (("SAMPLING_FRAME_NUM", 1), ("SAMPLING_FRAME_RANGE", 0)):
            if cfg.INPUT[key] < least:
                raise ConfigError(f"INPUT.{key}: expected at least {least}, found {cfg.INPUT[key]}")
        return cls(
            build_clip_augmentations(cfg, cfg.INPUT, key="INPUT"),
            image_augmentations=build_clip_augmentations(cfg, cfg.INPUT.PSEUDO, key="INPUT.PSEUDO"),
            sampling=FrameSampling(
                cfg.INPUT.SAMPLING_FRAME_NUM,
                reach=cfg.INPUT.SAMPLING_FRAME_RANGE,
                shuffle=cfg.INPUT.SAMPLING_FRAME_SHUFFLE,
            ),
            image_format=cfg.INPUT.FORMAT,
            image_bits=cfg.INPUT.IMAGE_BITS,
            num_channels=cfg.INPUT.CHANNELS,
            ignore_regions=cfg.MODEL.MASK_FORMER.IGNORE_REGIONS,
        )

    def __call__(self, dataset_dict: DatasetDict, rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Map one video or image; all random numbers come from ``rng``.

        Raises:
            DatasetError: a file is missing, damaged, or contradicts the annotations.
        """
        rng = np.random.default_rng() if rng is None else rng
        if "annotations" not in dataset_dict:
            raise lacks(dataset_dict, "annotations", "video")
        if is_video(dataset_dict):
            return self._clip_of_video(dataset_dict, rng)
        return self._clip_of_image(dataset_dict, rng)

    def _clip_of_video(self, record: DatasetDict, rng: np.random.Generator) -> dict[str, Any]:
        times = self.sampling.sample(rng, len(record["file_names"]))
        names = [record["file_names"][time] for time in times]
        images = [self._read(record, file_name=name) for name in names]
        annotations = [record["annotations"][time] for time in times]
        sample = {**record, "file_names": names, "frame_indices": times}
        return self._transform(sample, images, annotations, self.augmentations, rng)

    def _clip_of_image(self, record: DatasetDict, rng: np.random.Generator) -> dict[str, Any]:
        count = self.sampling.num_frames
        image = self._read(record)
        objects = [{**annotation, "id": index} for index, annotation in enumerate(record["annotations"])]
        sample = {**record, "file_names": [record["file_name"]] * count}
        return self._transform(sample, [image] * count, [objects] * count, self.image_augmentations, rng)

    def _transform(
        self,
        sample: dict[str, Any],
        images: list[np.ndarray],
        annotations: list[list[dict[str, Any]]],
        augmentations: ClipAugmentation,
        rng: np.random.Generator,
    ) -> dict[str, Any]:
        size = images[0].shape[:2]
        transforms = augmentations.sample(rng, size, num_frames=len(images))
        del sample["annotations"]
        sample.setdefault("height", size[0])
        sample.setdefault("width", size[1])
        sample["image"] = [image_to_tensor(t.apply_image(image)) for t, image in zip(transforms, images, strict=True)]
        names = sample["file_names"]
        sample["instances"] = clip_targets(annotations, transforms, size=size, file_names=names)
        if self.ignore_regions:
            crowds = [crowds_of(found, size=size, context=n) for found, n in zip(annotations, names, strict=True)]
            frames = zip(crowds, transforms, sample["instances"], strict=True)
            ignored = [ignored_after(*frame) for frame in frames]
            if any(mask.any() for mask in ignored):
                sample["ignore_mask"] = ignored
        return sample
