"""Random sizes: by the shortest edge, and by large-scale jitter."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from mask2former.data.transforms.augmentation import Augmentation
from mask2former.data.transforms.geometry import ResizeTransform
from mask2former.data.transforms.transform import NoOpTransform, Transform


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
        # Parity: the order of these products decides how halves are rounded (test_resize_shortest_edge_sizes).
        height, width = size
        scale = length * 1.0 / min(height, width)
        if height < width:
            new_height, new_width = float(length), scale * width
        else:
            new_height, new_width = scale * height, float(length)
        if max(new_height, new_width) > max_size:
            scale = max_size * 1.0 / max(new_height, new_width)
            new_height, new_width = new_height * scale, new_width * scale
        return max(int(new_height + 0.5), 1), max(int(new_width + 0.5), 1)


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
