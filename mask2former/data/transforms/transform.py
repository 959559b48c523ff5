"""The interfaces of transforms, fixed changes of an image and its annotations, and of augmentations, which draw one.

Coordinates are continuous: pixel (column i, row j) covers [i, i+1] × [j, j+1]. Sizes are (height, width).
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from mask2former.config import Registry
from mask2former.errors import ConfigError

IMAGE_FILL = 128
IGNORE_FILL = 255
Fill: TypeAlias = "int | tuple[float, ...]"  # of all channels, or of each

# Corners of a box (x0, y0, x1, y1) as (x, y) index pairs.
_CORNERS = np.array([[0, 1], [2, 1], [2, 3], [0, 3]])


class Transform(ABC):
    """A change without randomness, which is applied to image and annotations alike."""

    @abstractmethod
    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """Map an image (H, W) or (H, W, C) uint8 to one of ``output_size``."""

    @abstractmethod
    def apply_segmentation(self, segmentation: np.ndarray, *, fill: int = IGNORE_FILL) -> np.ndarray:
        """Map labels or ids (H, W) or (H, W, C) of any integer type, or a bool mask; values are never mixed.

        Pixels that come from outside the image become ``fill``.
        """

    @abstractmethod
    def apply_coords(self, coords_xy: np.ndarray) -> np.ndarray:
        """Map points (N, 2) float to points (N, 2), which may lie outside the image."""

    @abstractmethod
    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) of a transformed image of ``size``."""

    def fused_with(self, following: Transform) -> Transform | None:
        """Return one faster transform of images and segmentations, equal to this one and ``following``; or None."""
        return None

    def apply_boxes(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """Map boxes (N, 4) to the smallest axis-aligned boxes (N, 4) around their moved corners, not clipped."""
        boxes_xyxy = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
        corners = self.apply_coords(boxes_xyxy[:, _CORNERS].reshape(-1, 2)).reshape(-1, 4, 2)
        return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)

    def apply_polygons(self, polygons: Sequence[Sequence[float] | np.ndarray]) -> list[np.ndarray]:
        """Map polygons (x0, y0, x1, y1, …) to the same with moved points, not clipped."""
        return [
            self.apply_coords(np.asarray(polygon, dtype=np.float64).reshape(-1, 2)).reshape(-1) for polygon in polygons
        ]


class PixelTransform(Transform):
    """Changes values of pixels alone: every place stays where it is."""

    def apply_segmentation(self, segmentation: np.ndarray, *, fill: int = IGNORE_FILL) -> np.ndarray:
        return segmentation

    def apply_coords(self, coords_xy: np.ndarray) -> np.ndarray:
        return coords_xy

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size


class NoOpTransform(PixelTransform):
    """Changes nothing."""

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return image


class TransformList(Transform):
    """Transforms applied in sequence."""

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = list(transforms)

    @functools.cached_property
    def _pixel_steps(self) -> list[Transform]:
        """Return the transforms of pixels: nested lists are flattened, and neighbours fused."""
        steps: list[Transform] = []
        for transform in self.transforms:
            for step in transform._pixel_steps if isinstance(transform, TransformList) else [transform]:
                fused = steps[-1].fused_with(step) if steps else None
                steps[-1:] = [*steps[-1:], step] if fused is None else [fused]
        return steps

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        for step in self._pixel_steps:
            image = step.apply_image(image)
        return image

    def apply_segmentation(self, segmentation: np.ndarray, *, fill: int = IGNORE_FILL) -> np.ndarray:
        for transform in self._pixel_steps:
            segmentation = transform.apply_segmentation(segmentation, fill=fill)
        return segmentation

    def apply_coords(self, coords_xy: np.ndarray) -> np.ndarray:
        for transform in self.transforms:
            coords_xy = transform.apply_coords(coords_xy)
        return coords_xy

    def apply_boxes(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        # One box after each transform: a rotated box is boxed again, as when they are applied by hand.
        for transform in self.transforms:
            boxes_xyxy = transform.apply_boxes(boxes_xyxy)
        return boxes_xyxy

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        for transform in self.transforms:
            size = transform.output_size(size)
        return size

    def __repr__(self) -> str:
        return f"TransformList({self.transforms})"


# Builders that take the config, or classes with `from_config`.
AUGMENTATION_REGISTRY = Registry("augmentation", key="INPUT.AUGMENTATIONS")


class Augmentation(ABC):
    """Draws its random numbers once and returns the transform.

    All random numbers come from the given generator, never from a global one: training resumes bit-equal because the
    generator of a sample is a function of the seed and the sample's position alone.
    """

    needs_sem_seg: bool = False
    needs_image: bool = False

    @abstractmethod
    def sample(self, rng: np.random.Generator, size: tuple[int, int], sem_seg: np.ndarray | None = None) -> Transform:
        """Return the transform for an image of ``size`` (height, width).

        ``sem_seg`` (H, W), its class labels, is given if ``needs_sem_seg`` is set.
        """

    def __repr__(self) -> str:
        parameters = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({parameters})"


class ImageAugmentation(Augmentation):
    """An augmentation that depends on the pixels of the image, not only on its size."""

    needs_image = True

    @abstractmethod
    def sample_for(self, rng: np.random.Generator, image: np.ndarray, sem_seg: np.ndarray | None = None) -> Transform:
        """Return the transform for ``image`` (H, W, C) uint8."""

    def sample(self, rng: np.random.Generator, size: tuple[int, int], sem_seg: np.ndarray | None = None) -> Transform:
        """Refuse to sample without an image.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{self} looks at pixels, which are not given here")


class AugmentationList(Augmentation):
    """Augmentations in sequence; each gets the size, labels and pixels that the previous one leaves."""

    def __init__(self, augmentations: Sequence[Augmentation]) -> None:
        """Augmentations of detectron2 must be wrapped in ``integrations.detectron2.DetectronAugmentation``.

        Raises:
            ConfigError: one is not an augmentation of this package.
        """
        for augmentation in augmentations:
            if not isinstance(augmentation, Augmentation):
                kind = f"{type(augmentation).__module__}.{type(augmentation).__qualname__}"
                raise ConfigError(f"expected a subclass of {Augmentation.__module__}.Augmentation, found {kind}")
        self.augmentations = list(augmentations)
        self.needs_sem_seg = any(a.needs_sem_seg for a in self.augmentations)
        self.needs_image = any(a.needs_image for a in self.augmentations)

    def sample(
        self,
        rng: np.random.Generator,
        size: tuple[int, int],
        sem_seg: np.ndarray | None = None,
        *,
        image: np.ndarray | None = None,
    ) -> TransformList:
        """Return the composed transform; labels and image are transformed only if an augmentation needs them."""
        last_label_reader = max((i for i, a in enumerate(self.augmentations) if a.needs_sem_seg), default=-1)
        last_image_reader = max((i for i, a in enumerate(self.augmentations) if a.needs_image), default=-1)
        transforms = []
        for index, augmentation in enumerate(self.augmentations):
            if isinstance(augmentation, AugmentationList):
                transform: Transform = augmentation.sample(rng, size, sem_seg, image=image)
            elif isinstance(augmentation, ImageAugmentation) and image is not None:
                transform = augmentation.sample_for(rng, image, sem_seg)
            else:
                transform = augmentation.sample(rng, size, sem_seg)
            transforms.append(transform)
            size = transform.output_size(size)
            if sem_seg is not None and index < last_label_reader:
                sem_seg = transform.apply_segmentation(sem_seg, fill=IGNORE_FILL)
            if image is not None and index < last_image_reader:
                image = transform.apply_image(image)
        return TransformList(transforms)

    def __repr__(self) -> str:
        return f"AugmentationList({self.augmentations})"


class RandomApply(AugmentationList):
    """Applies an augmentation with probability ``prob``, and else leaves the image as it is.

    Raises:
        ValueError: ``prob`` lies outside 0..1.
    """

    def __init__(self, augmentation: Augmentation, /, prob: float = 0.5) -> None:
        super().__init__([augmentation])
        if not 0 <= prob <= 1:
            raise ValueError(f"prob must lie in 0..1, found {prob}")
        self.prob = prob

    def sample(
        self,
        rng: np.random.Generator,
        size: tuple[int, int],
        sem_seg: np.ndarray | None = None,
        *,
        image: np.ndarray | None = None,
    ) -> TransformList:
        """Return the transform of the augmentation, or none."""
        is_applied = rng.random() < self.prob
        return super().sample(rng, size, sem_seg, image=image) if is_applied else TransformList([])

    def __repr__(self) -> str:
        return f"RandomApply({self.augmentations[0]}, prob={self.prob})"
