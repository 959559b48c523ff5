"""The interface of transforms: one fixed change of an image and of its annotations.

Coordinates are continuous: pixel (column i, row j) covers [i, i+1] × [j, j+1]. Sizes are (height, width).
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

IMAGE_FILL = 128
IGNORE_FILL = 255

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


class NoOpTransform(Transform):
    """Changes nothing."""

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return image

    def apply_segmentation(self, segmentation: np.ndarray, *, fill: int = IGNORE_FILL) -> np.ndarray:
        return segmentation

    def apply_coords(self, coords_xy: np.ndarray) -> np.ndarray:
        return coords_xy

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size


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
