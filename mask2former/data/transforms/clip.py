"""Transforms of the T frames of a clip: one for all, one for each, or a moving window.

All frames of a clip have one size, before and after.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from mask2former.data.transforms.framing import RandomCrop
from mask2former.data.transforms.geometry import CropTransform
from mask2former.data.transforms.transform import Augmentation, Transform, TransformList


class ClipAugmentation(ABC):
    """Samples the transforms of all frames of a clip at once."""

    @abstractmethod
    def sample(self, rng: np.random.Generator, size: tuple[int, int], *, num_frames: int) -> list[Transform]:
        """Return one transform for each of ``num_frames`` frames of ``size`` (height, width)."""

    def __repr__(self) -> str:
        parameters = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({parameters})"


class ByClip(ClipAugmentation):
    """One draw for all frames: the same transform for each."""

    def __init__(self, augmentation: Augmentation) -> None:
        self.augmentation = augmentation

    def sample(self, rng: np.random.Generator, size: tuple[int, int], *, num_frames: int) -> list[Transform]:
        return [self.augmentation.sample(rng, size)] * num_frames


class ByFrame(ClipAugmentation):
    """A draw for each frame; the augmentation must give all of them one size."""

    def __init__(self, augmentation: Augmentation) -> None:
        self.augmentation = augmentation

    def sample(self, rng: np.random.Generator, size: tuple[int, int], *, num_frames: int) -> list[Transform]:
        return [self.augmentation.sample(rng, size) for _ in range(num_frames)]


class PanningCrop(ClipAugmentation):
    """A window of one size that moves in a straight line between two random positions, as a camera does."""

    def __init__(self, crop: RandomCrop) -> None:
        self.crop = crop

    def sample(self, rng: np.random.Generator, size: tuple[int, int], *, num_frames: int) -> list[Transform]:
        height, width = self.crop.sample_size(rng, size)
        room = np.array([size[0] - height, size[1] - width])
        first, last = np.rint(rng.random((2, 2)) * room)
        places = np.rint(np.linspace(first, last, num_frames)).astype(int)  # (T, 2)
        return [CropTransform(int(left), int(top), width, height) for top, left in places]


class ClipAugmentationList(ClipAugmentation):
    """Clip augmentations in sequence."""

    def __init__(self, augmentations: Sequence[ClipAugmentation]) -> None:
        self.augmentations = list(augmentations)

    def sample(self, rng: np.random.Generator, size: tuple[int, int], *, num_frames: int) -> list[Transform]:
        steps = []
        for augmentation in self.augmentations:
            transforms = augmentation.sample(rng, size, num_frames=num_frames)
            sizes = {transform.output_size(size) for transform in transforms}
            assert len(sizes) == 1, f"{augmentation} gives the frames of a clip the sizes {sizes}"
            size = sizes.pop()
            steps.append(transforms)
        return [TransformList([transforms[time] for transforms in steps]) for time in range(num_frames)]
