"""Flipping, rotating and padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mask2former.data.transforms.augmentation import Augmentation
from mask2former.data.transforms.geometry import HFlipTransform, PadTransform, RotationTransform, VFlipTransform
from mask2former.data.transforms.transform import IMAGE_FILL, NoOpTransform, Transform

FLIPS = ("horizontal", "vertical")


class RandomFlip(Augmentation):
    """Mirror along one axis with a probability."""

    def __init__(self, direction: str = "horizontal", *, probability: float = 0.5) -> None:
        if direction not in FLIPS:
            raise ValueError(f"direction must be one of {', '.join(FLIPS)}, found {direction!r}")
        self.direction = direction
        self.probability = probability

    def sample(self, rng: np.random.Generator, size: tuple[int, int], sem_seg: np.ndarray | None = None) -> Transform:
        if rng.random() >= self.probability:
            return NoOpTransform()
        return HFlipTransform(size[1]) if self.direction == "horizontal" else VFlipTransform(size[0])


class RandomRotation(Augmentation):
    """Rotate by an angle in degrees: within (least, most) when ``sampling`` is "range", one of them when "choice".

    ``center`` gives the range of the centre as shares of width and height, ((x0, y0), (x1, y1)), or, when
    choosing, the centres to choose from; None is the middle. ``expand`` enlarges the image to hold everything.
    """

    def __init__(
        self,
        angles: Sequence[float],
        *,
        expand: bool = True,
        center: Sequence[tuple[float, float]] | None = None,
        sampling: str = "range",
    ) -> None:
        if sampling not in ("range", "choice"):
            raise ValueError(f"sampling must be 'range' or 'choice', found {sampling!r}")
        if sampling == "range" and len(angles) != 2:
            raise ValueError(f"sampling from a range needs two angles, found {angles}")
        self.angles = tuple(angles)
        self.expand = expand
        self.center = None if center is None else tuple(center)
        self.sampling = sampling

    def sample(self, rng: np.random.Generator, size: tuple[int, int], sem_seg: np.ndarray | None = None) -> Transform:
        height, width = size
        center_xy = None
        if self.sampling == "range":
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
