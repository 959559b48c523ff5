"""Flipping, rotating and padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mask2former.data.transforms.augmentation import Augmentation
from mask2former.data.transforms.geometry import HFlipTransform, PadTransform, RotationTransform, VFlipTransform
from mask2former.data.transforms.transform import IMAGE_FILL, NoOpTransform, Transform


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
    centres to choose from; None is the middle. ``expand`` enlarges the image to hold everything.
    """

    def __init__(
        self,
        angle: float | Sequence[float],
        expand: bool = True,
        center: Sequence[tuple[float, float]] | None = None,
        sample_style: str = "range",
    ) -> None:
        angles = (angle, angle) if isinstance(angle, (int, float)) else tuple(angle)
        if sample_style not in ("range", "choice"):
            raise ValueError(f"sample_style must be 'range' or 'choice', found {sample_style!r}")
        if sample_style == "range" and len(angles) != 2:
            raise ValueError(f"sample_style 'range' needs two angles, found {angles}")
        self.angles = angles
        self.expand = expand
        self.center = None if center is None else tuple(center)
        self.sample_style = sample_style

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
        return RotationTransform(height, width, angle, self.expand, center_xy)


class PadToDivisible(Augmentation):
    """Pad at bottom and right until both sides are multiples of ``divisor``."""

    def __init__(self, divisor: int, *, image_fill: int = IMAGE_FILL) -> None:
        if divisor < 1:
            raise ValueError(f"divisor must be positive, found {divisor}")
        self.divisor = divisor
        self.image_fill = image_fill

    def sample(self, rng: np.random.Generator, size: tuple[int, int], sem_seg: np.ndarray | None = None) -> Transform:
        bottom, right = (-side % self.divisor for side in size)
        return PadTransform(0, 0, right, bottom, self.image_fill)
