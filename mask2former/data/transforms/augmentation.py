"""The interface of augmentations: distributions of transforms, sampled from a given random generator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from mask2former.config import Registry
from mask2former.data.transforms.transform import IGNORE_FILL, Transform, TransformList
from mask2former.errors import ConfigError

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
