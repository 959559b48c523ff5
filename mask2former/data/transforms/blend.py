"""Small changes of brightness, contrast and saturation, as in the training of the published video models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mask2former.data.transforms.augmentation import Augmentation
from mask2former.data.transforms.transform import NoOpTransform

BLENDS = ("brightness", "contrast", "saturation")
_LUMA_RGB = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


@dataclass(frozen=True)
class BlendTransform(NoOpTransform):
    """``weight`` times the image plus (1 - ``weight``) times an image that depends on ``kind``.

    That image is black for brightness, the mean of all values for contrast, and the grey of each pixel for saturation.
    """

    kind: str
    weight: float
    is_rgb: bool = True

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        pixels = image.astype(np.float32)
        blended = np.float32(self.weight) * pixels + np.float32(1 - self.weight) * self._other(pixels)
        return np.clip(blended, 0, 255).astype(np.uint8)

    def _other(self, pixels: np.ndarray) -> np.ndarray:
        if self.kind == "brightness":
            return np.zeros(1, dtype=np.float32)
        if self.kind == "contrast":
            return pixels.mean(dtype=np.float64).astype(np.float32)
        if pixels.ndim != 3 or pixels.shape[2] != 3:
            return pixels  # grey already
        luma = _LUMA_RGB if self.is_rgb else _LUMA_RGB[::-1]
        return (pixels @ luma)[..., None]


class RandomBlend(Augmentation):
    """Brightness, contrast or saturation with a weight drawn from ``weights`` (least, most)."""

    def __init__(self, kind: str, *, image_format: str, weights: tuple[float, float] = (0.9, 1.1)) -> None:
        if kind not in BLENDS:
            raise ValueError(f"kind must be one of {', '.join(BLENDS)}, found {kind!r}")
        self.kind, self.weights = kind, weights
        self.is_rgb = image_format != "BGR"

    def sample(
        self, rng: np.random.Generator, size: tuple[int, int], sem_seg: np.ndarray | None = None
    ) -> BlendTransform:
        return BlendTransform(self.kind, float(rng.uniform(*self.weights)), self.is_rgb)


class RandomBrightness(RandomBlend):
    """Multiply brightness by a factor drawn from ``intensity_min`` to ``intensity_max``."""

    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        super().__init__("brightness", image_format="RGB", weights=(intensity_min, intensity_max))


class RandomContrast(RandomBlend):
    """Multiply distances from the mean by a factor drawn from ``intensity_min`` to ``intensity_max``."""

    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        super().__init__("contrast", image_format="RGB", weights=(intensity_min, intensity_max))


class RandomSaturation(RandomBlend):
    """Multiply distances from grey by a factor drawn from ``intensity_min`` to ``intensity_max``; for RGB images."""

    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        super().__init__("saturation", image_format="RGB", weights=(intensity_min, intensity_max))
