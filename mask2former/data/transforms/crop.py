"""Random windows of an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mask2former.data.transforms.augmentation import Augmentation
from mask2former.data.transforms.geometry import CropTransform, PadTransform
from mask2former.data.transforms.transform import IMAGE_FILL, Transform, TransformList

CROP_TYPES = ("relative", "relative_range", "absolute", "absolute_range")
_NUM_ATTEMPTS = 10  # of the published implementation


class RandomCrop(Augmentation):
    """A window at a random position. ``crop_type`` says what ``crop_size`` (height, width) means:

    relative: share of the image; relative_range: a share between it and 1; absolute: pixels; absolute_range: (least,
    most) pixels, each side drawn on its own.
    """

    def __init__(self, crop_type: str, crop_size: Sequence[float]) -> None:
        if crop_type not in CROP_TYPES:
            raise ValueError(f"crop type must be one of {', '.join(CROP_TYPES)}, found {crop_type!r}")
        if len(crop_size) != 2 or min(crop_size) <= 0:
            raise ValueError(f"crop size must be two positive numbers, found {crop_size}")
        if crop_type.startswith("relative") and max(crop_size) > 1:
            raise ValueError(f"a relative crop size lies in 0..1, found {crop_size}")
        if crop_type == "absolute_range" and crop_size[0] > crop_size[1]:
            raise ValueError(f"an absolute range is (least, most), found {crop_size}")
        self.crop_type = crop_type
        self.crop_size = (crop_size[0], crop_size[1])

    def sample(
        self, rng: np.random.Generator, size: tuple[int, int], sem_seg: np.ndarray | None = None
    ) -> CropTransform:
        height, width = self.sample_size(rng, size)
        top = int(rng.integers(size[0] - height + 1))
        left = int(rng.integers(size[1] - width + 1))
        return CropTransform(left, top, width, height)

    def sample_size(self, rng: np.random.Generator, size: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) of the window in an image of ``size``, at least 1 × 1."""
        if self.crop_type == "absolute":
            return min(int(self.crop_size[0]), size[0]), min(int(self.crop_size[1]), size[1])
        if self.crop_type == "absolute_range":
            least, most = (int(c) for c in self.crop_size)
            height, width = (int(rng.integers(min(side, least), min(side, most) + 1)) for side in size)
            return height, width
        shares = np.array(self.crop_size, dtype=np.float64)
        if self.crop_type == "relative_range":
            shares = shares + rng.random(2) * (1 - shares)
        height, width = (max(int(side * share + 0.5), 1) for side, share in zip(size, shares, strict=True))
        return height, width


class RandomCropCategoryAreaConstraint(Augmentation):
    """A random crop, drawn again up to ten times if one class covers too much of it.

    A crop is accepted when it holds more than one class and none covers ``single_category_max_area`` of its labelled
    pixels or more; ``ignored_category`` counts as unlabelled. 1.0 accepts every crop.
    """

    def __init__(
        self,
        crop_type: str,
        crop_size: Sequence[float],
        single_category_max_area: float = 1.0,
        ignored_category: int | None = None,
    ) -> None:
        self.crop = RandomCrop(crop_type, crop_size)
        self.single_category_max_area = single_category_max_area
        self.ignored_category = ignored_category
        self.needs_sem_seg = single_category_max_area < 1.0

    def sample(self, rng: np.random.Generator, size: tuple[int, int], sem_seg: np.ndarray | None = None) -> Transform:
        transform = self.crop.sample(rng, size)
        if not self.needs_sem_seg:
            return transform
        assert sem_seg is not None, "a crop with a limit on class areas looks at the labels"
        for _ in range(_NUM_ATTEMPTS - 1):
            if self._accepts(transform.apply_segmentation(sem_seg)):
                break
            transform = self.crop.sample(rng, size)
        return transform

    def _accepts(self, labels: np.ndarray) -> bool:
        classes, areas = np.unique(labels, return_counts=True)
        if self.ignored_category is not None:
            areas = areas[classes != self.ignored_category]
        return len(areas) > 1 and areas.max() < areas.sum() * self.single_category_max_area


RandomCrop_CategoryAreaConstraint = RandomCropCategoryAreaConstraint  # as detectron2 spells it


class FixedSizeCrop(Augmentation):
    """A window of exactly ``crop_size`` (height, width); smaller images are padded at bottom and right."""

    def __init__(self, crop_size: tuple[int, int], *, image_fill: int = IMAGE_FILL) -> None:
        self.crop_size = crop_size
        self.image_fill = image_fill

    def sample(self, rng: np.random.Generator, size: tuple[int, int], sem_seg: np.ndarray | None = None) -> Transform:
        # Parity: one random number places the window along both axes (test_fixed_size_crop_reference).
        place = float(rng.random())
        top, left = (int(np.round(max(s - c, 0) * place)) for s, c in zip(size, self.crop_size, strict=True))
        return self.at(size, top=top, left=left)

    def at(self, size: tuple[int, int], *, top: int, left: int) -> Transform:
        """Return the window whose upper left corner is given, in an image of ``size``."""
        height, width = self.crop_size
        crop = CropTransform(left, top, width, height)
        kept_height, kept_width = crop.output_size(size)
        pad = PadTransform(0, 0, width - kept_width, height - kept_height, self.image_fill)
        return TransformList([crop, pad])
