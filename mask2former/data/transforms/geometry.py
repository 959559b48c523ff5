"""Transforms that move pixels: resize, crop, pad, flip, rotate.

Resizing is Pillow's (bilinear with a support that grows when shrinking, nearest for labels), rotation OpenCV's,
because the published models were trained on exactly those pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from mask2former.data.transforms.transform import IGNORE_FILL, IMAGE_FILL, Transform


@dataclass(frozen=True)
class ResizeTransform(Transform):
    """Resize from (height, width) to (new_height, new_width)."""

    height: int
    width: int
    new_height: int
    new_width: int

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return self._resize(image, Image.Resampling.BILINEAR)

    def apply_segmentation(self, segmentation: np.ndarray, *, fill: int = IGNORE_FILL) -> np.ndarray:
        return self._resize(segmentation, Image.Resampling.NEAREST)

    def apply_coords(self, coords_xy: np.ndarray) -> np.ndarray:
        return coords_xy * np.array([self.new_width / self.width, self.new_height / self.height])

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        assert size == (self.height, self.width), f"resize made for {(self.height, self.width)}, given {size}"
        return self.new_height, self.new_width

    def _resize(self, array: np.ndarray, resampling: Image.Resampling) -> np.ndarray:
        assert array.shape[:2] == (self.height, self.width), f"resize made for {self}, given {array.shape}"
        if (self.height, self.width) == (self.new_height, self.new_width):
            return array
        if array.ndim == 3 and array.shape[2] != 3:
            channels = [self._resize(array[..., c], resampling) for c in range(array.shape[2])]
            return np.stack(channels, axis=-1)
        if array.dtype == bool:
            return self._resize(array.view(np.uint8), resampling).view(bool)
        if array.dtype != np.uint8:
            return self._resize_wide(array, resampling)
        resized = Image.fromarray(array).resize((self.new_width, self.new_height), resampling)
        return np.asarray(resized)

    def _resize_wide(self, array: np.ndarray, resampling: Image.Resampling) -> np.ndarray:
        # Pillow resizes 32-bit integers and floats, one channel at a time.
        if array.ndim == 3:
            channels = [self._resize_wide(array[..., c], resampling) for c in range(array.shape[2])]
            return np.stack(channels, axis=-1)
        kind = np.int32 if array.dtype.kind in "iu" else np.float32
        image = Image.fromarray(np.ascontiguousarray(array, dtype=kind))
        return np.asarray(image.resize((self.new_width, self.new_height), resampling)).astype(array.dtype, copy=False)


@dataclass(frozen=True)
class CropTransform(Transform):
    """Keep a window; what of it reaches beyond the image is left out."""

    left: int
    top: int
    width: int
    height: int

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return image[self.top : self.top + self.height, self.left : self.left + self.width]

    def apply_segmentation(self, segmentation: np.ndarray, *, fill: int = IGNORE_FILL) -> np.ndarray:
        return self.apply_image(segmentation)

    def apply_coords(self, coords_xy: np.ndarray) -> np.ndarray:
        return coords_xy - np.array([self.left, self.top], dtype=np.float64)

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return min(self.height, size[0] - self.top), min(self.width, size[1] - self.left)


@dataclass(frozen=True)
class PadTransform(Transform):
    """Add pixels around an image: ``image_fill`` in the image, in labels the fill of the call."""

    left: int
    top: int
    right: int
    bottom: int
    image_fill: int = IMAGE_FILL

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return self._pad(image, self.image_fill)

    def apply_segmentation(self, segmentation: np.ndarray, *, fill: int = IGNORE_FILL) -> np.ndarray:
        return self._pad(segmentation, fill)

    def apply_coords(self, coords_xy: np.ndarray) -> np.ndarray:
        return coords_xy + np.array([self.left, self.top], dtype=np.float64)

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] + self.top + self.bottom, size[1] + self.left + self.right

    def _pad(self, array: np.ndarray, fill: int) -> np.ndarray:
        height, width = array.shape[:2]
        out_height, out_width = self.output_size((height, width))
        if (out_height, out_width) == (height, width):
            return array
        padded = np.full((out_height, out_width, *array.shape[2:]), fill, dtype=array.dtype)
        padded[self.top : self.top + height, self.left : self.left + width] = array
        return padded


@dataclass(frozen=True)
class HFlipTransform(Transform):
    """Mirror left and right an image ``width`` pixels wide."""

    width: int

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return image[:, ::-1]

    def apply_segmentation(self, segmentation: np.ndarray, *, fill: int = IGNORE_FILL) -> np.ndarray:
        return segmentation[:, ::-1]

    def apply_coords(self, coords_xy: np.ndarray) -> np.ndarray:
        return np.stack([self.width - coords_xy[:, 0], coords_xy[:, 1]], axis=1)

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size


@dataclass(frozen=True)
class VFlipTransform(Transform):
    """Mirror top and bottom an image ``height`` pixels high."""

    height: int

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return image[::-1]

    def apply_segmentation(self, segmentation: np.ndarray, *, fill: int = IGNORE_FILL) -> np.ndarray:
        return segmentation[::-1]

    def apply_coords(self, coords_xy: np.ndarray) -> np.ndarray:
        return np.stack([coords_xy[:, 0], self.height - coords_xy[:, 1]], axis=1)

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size


@dataclass(frozen=True)
class RotationTransform(Transform):
    """Rotate by ``angle`` degrees, counter-clockwise as seen, about ``center_xy`` (the middle where None).

    With ``expand`` the result is large enough to hold the whole rotated image. The image is filled with black.
    """

    height: int
    width: int
    angle: float
    expand: bool = True
    center_xy: tuple[float, float] | None = None

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return self._warp(image, cv2.INTER_LINEAR, 0)

    def apply_segmentation(self, segmentation: np.ndarray, *, fill: int = IGNORE_FILL) -> np.ndarray:
        # Labels wider than a byte go through as bytes: nearest neighbours are copied whole.
        segmentation = np.ascontiguousarray(segmentation)
        if segmentation.dtype == np.uint8:
            return self._warp(segmentation, cv2.INTER_NEAREST, fill)
        planes = segmentation.reshape(*segmentation.shape, 1).view(np.uint8)  # (H, W, bytes)
        fill_bytes = np.array([fill]).astype(segmentation.dtype).view(np.uint8)
        warped = [
            self._warp(np.ascontiguousarray(planes[..., i]), cv2.INTER_NEAREST, int(value))
            for i, value in enumerate(fill_bytes)
        ]
        return np.stack(warped, axis=-1).view(segmentation.dtype)[..., 0]

    def apply_coords(self, coords_xy: np.ndarray) -> np.ndarray:
        if self._is_identity:
            return coords_xy
        matrix = self._matrix(offset=0.0)
        return coords_xy @ matrix[:, :2].T + matrix[:, 2]

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        assert size == (self.height, self.width), f"rotation made for {(self.height, self.width)}, given {size}"
        if self._is_identity or not self.expand:
            return size
        radians = np.deg2rad(self.angle)
        cosine, sine = abs(np.cos(radians)), abs(np.sin(radians))
        height, width = self.height, self.width
        return int(np.rint(height * cosine + width * sine)), int(np.rint(height * sine + width * cosine))

    @property
    def _is_identity(self) -> bool:
        return self.angle % 360 == 0

    def _matrix(self, offset: float) -> np.ndarray:
        """Affine map (2, 3); OpenCV's pixel centres lie at integers, so images need ``offset`` -0.5."""
        middle = np.array([self.width / 2, self.height / 2])
        center = middle if self.center_xy is None else np.array(self.center_xy)
        pivot = (float(center[0] + offset), float(center[1] + offset))
        matrix = np.asarray(cv2.getRotationMatrix2D(pivot, self.angle, 1.0), dtype=np.float64)
        if self.expand:
            height, width = self.output_size((self.height, self.width))
            moved_middle = matrix[:, :2] @ (middle + offset) + matrix[:, 2]
            matrix[:, 2] = matrix[:, 2] + np.array([width / 2, height / 2]) + offset - moved_middle
        return matrix

    def _warp(self, array: np.ndarray, interpolation: int, fill: int) -> np.ndarray:
        if self._is_identity or array.size == 0:
            return array
        height, width = self.output_size((self.height, self.width))
        warped = cv2.warpAffine(
            np.ascontiguousarray(array),
            self._matrix(offset=-0.5),
            (width, height),
            flags=interpolation,
            borderValue=(fill,) * 4,
        )
        return warped.reshape(height, width, *array.shape[2:])
