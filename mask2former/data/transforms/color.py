"""Colour jitter, as in SSD and as in the training of the published video models.

SSD (Liu et al., 2016, https://arxiv.org/abs/1512.02325, and its reference training): brightness, then contrast before
or after saturation and hue; each with probability one half.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from mask2former.data.transforms.transform import Augmentation, NoOpTransform, PixelTransform, Transform

_NUM_HUES = 180  # OpenCV keeps half degrees


@dataclass(frozen=True)
class SSDColorTransform(PixelTransform):
    """Sampled colour changes; None leaves that one out.

    ``brightness`` is added; ``contrast`` and ``saturation`` are factors; ``hue`` is added in steps of two degrees.
    """

    brightness: float | None = None
    contrast: float | None = None
    saturation: float | None = None
    hue: int | None = None
    contrast_first: bool = True
    is_rgb: bool = False

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            return image  # grey images have no colour, nor have channels of other things
        if self.brightness is not None:
            image = cv2.LUT(image, _linear_table(1.0, self.brightness))
        if self.contrast is not None and self.contrast_first:
            image = cv2.LUT(image, _linear_table(self.contrast, 0.0))
        if self.saturation is not None:
            image = self._change_hsv(image, 1, _linear_table(self.saturation, 0.0))
        if self.hue is not None:
            shifted = (np.arange(256) + self.hue) % _NUM_HUES
            image = self._change_hsv(image, 0, shifted.astype(np.uint8))
        if self.contrast is not None and not self.contrast_first:
            image = cv2.LUT(image, _linear_table(self.contrast, 0.0))
        return image

    def _change_hsv(self, image: np.ndarray, channel: int, table: np.ndarray) -> np.ndarray:
        # Parity: saturation and hue each convert there and back, with the rounding of both.
        forth, back = (cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB) if self.is_rgb else (cv2.COLOR_BGR2HSV, cv2.COLOR_HSV2BGR)
        hsv = cv2.cvtColor(np.ascontiguousarray(image), forth)
        tables = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)  # (1, 256, channels)
        tables[..., channel] = table
        return cv2.cvtColor(cv2.LUT(hsv, tables), back)


def _linear_table(factor: float, offset: float) -> np.ndarray:
    """Return for every byte factor × value + offset, clipped and truncated to integers, (256,) uint8."""
    values = np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(offset)
    return np.clip(values, 0, 255).astype(np.uint8)


class ColorAugSSD(Augmentation):
    """Random brightness, contrast, saturation and hue; ``image_format`` is BGR or RGB."""

    def __init__(
        self,
        image_format: str,
        *,
        brightness_delta: int = 32,
        contrast_range: tuple[float, float] = (0.5, 1.5),
        saturation_range: tuple[float, float] = (0.5, 1.5),
        hue_delta: int = 18,
    ) -> None:
        self.is_rgb = image_format == "RGB"
        self.brightness_delta = brightness_delta
        self.contrast_range = contrast_range
        self.saturation_range = saturation_range
        self.hue_delta = hue_delta

    def sample(self, rng: np.random.Generator, size: tuple[int, int], sem_seg: np.ndarray | None = None) -> Transform:
        # Everything is drawn whether it is used or not, so that one draw does not move the others.
        takes = rng.random(4) < 0.5
        brightness = float(rng.uniform(-self.brightness_delta, self.brightness_delta))
        contrast = float(rng.uniform(*self.contrast_range))
        saturation = float(rng.uniform(*self.saturation_range))
        hue = int(rng.integers(-self.hue_delta, self.hue_delta + 1))
        return SSDColorTransform(
            brightness=brightness if takes[0] else None,
            contrast=contrast if takes[1] else None,
            saturation=saturation if takes[2] else None,
            hue=hue if takes[3] else None,
            contrast_first=bool(rng.random() < 0.5),
            is_rgb=self.is_rgb,
        )


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
        if image.dtype != np.uint8:
            return image  # channels of other things than light
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
