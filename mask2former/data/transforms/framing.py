"""Augmentations of the frame: random sizes, random windows, flips, rotations and padding."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import cv2
import numpy as np

from mask2former.data.transforms.geometry import (
    CropTransform,
    HFlipTransform,
    PadTransform,
    ResizeTransform,
    RotationTransform,
    VFlipTransform,
)
from mask2former.data.transforms.transform import (
    IMAGE_FILL,
    Augmentation,
    Fill,
    NoOpTransform,
    Transform,
    TransformList,
)
from mask2former.runtime.resizing import shortest_edge_size

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
    """A window of exactly ``crop_size`` (height, width); smaller images are padded at bottom and right.

    Without ``pad`` the window of a smaller image is smaller. ``pad_value`` is for images: labels take the ignore label.
    """

    def __init__(self, crop_size: tuple[int, int], pad: bool = True, pad_value: Fill = IMAGE_FILL) -> None:
        self.crop_size = crop_size
        self.pad = pad
        self.pad_value = pad_value

    def sample(self, rng: np.random.Generator, size: tuple[int, int], sem_seg: np.ndarray | None = None) -> Transform:
        # Parity: one random number places the window along both axes (test_fixed_size_crop_reference).
        place = float(rng.random())
        top, left = (int(np.round(max(s - c, 0) * place)) for s, c in zip(size, self.crop_size, strict=True))
        return self.at(size, top=top, left=left)

    def at(self, size: tuple[int, int], *, top: int, left: int) -> Transform:
        """Return the window whose upper left corner is given, in an image of ``size``."""
        height, width = self.crop_size
        crop = CropTransform(left, top, width, height)
        if not self.pad:
            return crop
        kept_height, kept_width = crop.output_size(size)
        pad = PadTransform(0, 0, width - kept_width, height - kept_height, self.pad_value)
        return TransformList([crop, pad])


class ResizeShortestEdge(Augmentation):
    """Bring the shorter side to a sampled length, unless that makes the longer one exceed ``max_size``.

    ``sample_style`` "choice" picks one of the lengths; "range" a whole number between two of them, both included.
    A length of 0 leaves the image as it is.
    """

    def __init__(
        self, short_edge_length: int | Sequence[int], max_size: int = sys.maxsize, sample_style: str = "range"
    ) -> None:
        both = (short_edge_length,) * 2 if isinstance(short_edge_length, int) else short_edge_length
        self.lengths = tuple(both)
        self.max_size = max_size
        self.sample_style = sample_style
        if sample_style not in ("choice", "range"):
            raise ValueError(f"sample_style must be 'choice' or 'range', found {sample_style!r}")
        if not self.lengths or min(self.lengths) < 0:
            raise ValueError(f"short_edge_length must be at least one number from 0 on, found {self.lengths}")
        if sample_style == "range" and (len(self.lengths) != 2 or self.lengths[0] > self.lengths[1]):
            raise ValueError(f"sample_style 'range' needs two lengths, least first, found {self.lengths}")

    def sample(self, rng: np.random.Generator, size: tuple[int, int], sem_seg: np.ndarray | None = None) -> Transform:
        if self.sample_style == "range":
            length = int(rng.integers(self.lengths[0], self.lengths[1] + 1))
        else:
            length = self.lengths[int(rng.integers(len(self.lengths)))]
        if length == 0:
            return NoOpTransform()
        return ResizeTransform(*size, *self.output_size(size, length, self.max_size))

    @staticmethod
    def output_size(size: tuple[int, int], length: int, max_size: int) -> tuple[int, int]:
        """Return (height, width) of an image of ``size`` whose shorter side is resized to ``length``."""
        return shortest_edge_size(size, length, max_size)


class Resize(Augmentation):
    """Bring the image to ``shape``, (height, width) or the side of a square."""

    def __init__(self, shape: int | Sequence[int]) -> None:
        self.shape = (shape, shape) if isinstance(shape, int) else (int(shape[0]), int(shape[1]))
        if min(self.shape) < 1:
            raise ValueError(f"shape must be positive, found {self.shape}")

    def sample(self, rng: np.random.Generator, size: tuple[int, int], sem_seg: np.ndarray | None = None) -> Transform:
        return ResizeTransform(*size, *self.shape)


class ResizeScale(Augmentation):
    """Large-scale jitter: fit the image into the target size times a factor drawn from [min_scale, max_scale]."""

    def __init__(self, min_scale: float, max_scale: float, target_height: int, target_width: int) -> None:
        if not 0 < min_scale <= max_scale:
            raise ValueError(f"scales must satisfy 0 < min_scale <= max_scale, found {min_scale} and {max_scale}")
        self.min_scale, self.max_scale = min_scale, max_scale
        self.target_size = (target_height, target_width)

    def sample(self, rng: np.random.Generator, size: tuple[int, int], sem_seg: np.ndarray | None = None) -> Transform:
        scale = float(rng.uniform(self.min_scale, self.max_scale))
        return ResizeTransform(*size, *self.output_size(size, scale, self.target_size))

    @staticmethod
    def output_size(size: tuple[int, int], scale: float, target_size: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) of an image of ``size`` fitted into ``target_size`` times ``scale``."""
        ratio = min(target_size[0] * scale / size[0], target_size[1] * scale / size[1])
        new_height, new_width = (int(np.round(side * ratio)) for side in size)
        return max(new_height, 1), max(new_width, 1)


class RandomFlip(Augmentation):
    """Mirror along one axis with the probability ``prob``."""

    def __init__(self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False) -> None:
        if horizontal == vertical:
            raise ValueError(f"a flip is horizontal or vertical (for both take two), found {horizontal} and {vertical}")
        if not isinstance(prob, (int, float)) or not 0 <= prob <= 1:
            raise ValueError(f"prob must lie in 0..1, found {prob!r}")
        self.prob, self.horizontal, self.vertical = prob, horizontal, vertical

    def sample(self, rng: np.random.Generator, size: tuple[int, int], sem_seg: np.ndarray | None = None) -> Transform:
        if rng.random() >= self.prob:
            return NoOpTransform()
        return HFlipTransform(size[1]) if self.horizontal else VFlipTransform(size[0])


class RandomRotation(Augmentation):
    """Rotate by an angle in degrees: within (least, most) if ``sample_style`` is "range", one of several if "choice".

    ``center`` is the range of the centre as shares of width and height, ((x0, y0), (x1, y1)), or, for "choice", the
    centres to choose from; None is the middle. ``expand`` enlarges the image to hold everything. ``interp`` is OpenCV's
    number of the interpolation of images, bilinear where None.
    """

    def __init__(
        self,
        angle: float | Sequence[float],
        expand: bool = True,
        center: Sequence[tuple[float, float]] | None = None,
        sample_style: str = "range",
        interp: int | None = None,
        *,
        image_fill: Fill = 0,
    ) -> None:
        angles = (angle, angle) if isinstance(angle, (int, float)) else tuple(angle)
        if sample_style not in ("range", "choice"):
            raise ValueError(f"sample_style must be 'range' or 'choice', found {sample_style!r}")
        if sample_style == "range" and len(angles) != 2:
            raise ValueError(f"sample_style 'range' needs two angles, found {angles}")
        self.angles = angles
        self.expand = expand
        self.center = None if center is None else tuple(center)
        self.sample_style, self.image_fill = sample_style, image_fill
        self.interp = cv2.INTER_LINEAR if interp is None else interp

    def sample(self, rng: np.random.Generator, size: tuple[int, int], sem_seg: np.ndarray | None = None) -> Transform:
        height, width = size
        center_xy = None
        if self.sample_style == "range":
            angle = float(rng.uniform(self.angles[0], self.angles[1]))
            if self.center is not None:
                (x0, y0), (x1, y1) = self.center
                center_xy = (width * float(rng.uniform(x0, x1)), height * float(rng.uniform(y0, y1)))
        else:
            angle = float(self.angles[int(rng.integers(len(self.angles)))])
            if self.center is not None:
                x, y = self.center[int(rng.integers(len(self.center)))]
                center_xy = (width * x, height * y)
        if angle % 360 == 0:
            return NoOpTransform()
        return RotationTransform(height, width, angle, self.expand, center_xy, self.image_fill, self.interp)


class PadToDivisible(Augmentation):
    """Pad at bottom and right until both sides are multiples of ``divisor``."""

    def __init__(self, divisor: int, *, image_fill: Fill = IMAGE_FILL) -> None:
        if divisor < 1:
            raise ValueError(f"divisor must be positive, found {divisor}")
        self.divisor = divisor
        self.image_fill = image_fill

    def sample(self, rng: np.random.Generator, size: tuple[int, int], sem_seg: np.ndarray | None = None) -> Transform:
        bottom, right = (-side % self.divisor for side in size)
        return PadTransform(0, 0, right, bottom, self.image_fill)
