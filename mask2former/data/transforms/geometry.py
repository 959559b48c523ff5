"""Transforms that move pixels: resize, crop, pad, flip, rotate.

Resizing is Pillow's (bilinear with a support that grows when shrinking, nearest for labels), rotation OpenCV's, because
the published models were trained with them.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from mask2former.data.transforms.transform import IGNORE_FILL, IMAGE_FILL, Fill, Transform


@dataclass(frozen=True)
class ResizeTransform(Transform):
    """Resize from (height, width) to (new_height, new_width)."""

    height: int
    width: int
    new_height: int
    new_width: int

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return self.apply_image_within(image, CropTransform(0, 0, self.new_width, self.new_height))

    def apply_segmentation(self, segmentation: np.ndarray, *, fill: int = IGNORE_FILL) -> np.ndarray:
        return self.apply_segmentation_within(segmentation, CropTransform(0, 0, self.new_width, self.new_height))

    def apply_image_within(self, image: np.ndarray, window: CropTransform) -> np.ndarray:
        """Return the part of the resized image inside ``window``."""
        self._check(image)
        if (self.height, self.width) == (self.new_height, self.new_width):
            return window.apply_image(image)
        return _resize_bilinear(image, (self.new_height, self.new_width), window)

    def apply_segmentation_within(self, segmentation: np.ndarray, window: CropTransform) -> np.ndarray:
        """Return the part of the resized segmentation inside ``window``."""
        self._check(segmentation)
        if (self.height, self.width) == (self.new_height, self.new_width):
            return window.apply_image(segmentation)
        rows = _nearest_indices(self.height, self.new_height)[window.top : window.top + window.height]
        columns = _nearest_indices(self.width, self.new_width)[window.left : window.left + window.width]
        # The axis that leaves less for the other comes first.
        if self.height * len(columns) < self.width * len(rows):
            return segmentation.take(columns, axis=1).take(rows, axis=0)
        return segmentation.take(rows, axis=0).take(columns, axis=1)

    def fused_with(self, following: Transform) -> Transform | None:
        return ResizedWindow(self, following) if isinstance(following, CropTransform) else None

    def apply_coords(self, coords_xy: np.ndarray) -> np.ndarray:
        return coords_xy * np.array([self.new_width / self.width, self.new_height / self.height])

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        assert size == (self.height, self.width), f"resize made for {(self.height, self.width)}, given {size}"
        return self.new_height, self.new_width

    def _check(self, array: np.ndarray) -> None:
        assert array.shape[:2] == (self.height, self.width), f"resize made for {self}, given {array.shape}"


def _resize_bilinear(image: np.ndarray, size: tuple[int, int], window: CropTransform) -> np.ndarray:
    """Return the part inside ``window`` of ``image`` resized to ``size`` (height, width)."""
    if image.ndim == 3 and image.shape[2] != 3:
        channels = [_resize_bilinear(image[..., c], size, window) for c in range(image.shape[2])]
        return np.stack(channels, axis=-1)
    if image.dtype == bool:
        return _resize_bilinear(image.view(np.uint8), size, window).view(bool)
    if image.dtype == np.uint8:
        return np.asarray(_resize_window(Image.fromarray(image), size, window))
    # Pillow resizes 32-bit integers and floats, one channel at a time.
    if image.ndim == 3:
        return np.stack([_resize_bilinear(image[..., c], size, window) for c in range(image.shape[2])], axis=-1)
    wide = np.ascontiguousarray(image, dtype=np.int32 if image.dtype.kind in "iu" else np.float32)
    return np.asarray(_resize_window(Image.fromarray(wide), size, window)).astype(image.dtype, copy=False)


def _resize_window(image: Image.Image, size: tuple[int, int], window: CropTransform) -> Image.Image:
    height, width = size
    top, left = window.top, window.left
    bottom, right = min(top + window.height, height), min(left + window.width, width)
    # Pillow resizes rows and then columns, so that columns outside the window need not be resized. From version 13 on
    # it takes the other order for some images that lose height. (Its own argument ``box`` moves the weights by a
    # rounding error, which would change pixels.)
    if height < image.height:
        return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, right, bottom))
    if left > 0 or right < width:
        image = image.resize((width, image.height), Image.Resampling.BILINEAR).crop((left, 0, right, image.height))
    image = image.resize((right - left, height), Image.Resampling.BILINEAR)
    return image.crop((0, top, right - left, bottom)) if top > 0 or bottom < height else image


def _nearest_indices(length: int, new_length: int) -> np.ndarray:
    """Return which of ``length`` pixels Pillow takes for each of ``new_length``: (new_length,)."""
    ramp = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    return np.asarray(ramp.resize((new_length, 1), Image.Resampling.NEAREST))[0]


@dataclass(frozen=True)
class CropTransform(Transform):
    """Keep a window; the part of it outside the image is left out."""

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
class ResizedWindow(Transform):
    """Resize, then keep a window; what lies outside it is not resized if that changes nothing inside."""

    resize: ResizeTransform
    window: CropTransform

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return self.resize.apply_image_within(image, self.window)

    def apply_segmentation(self, segmentation: np.ndarray, *, fill: int = IGNORE_FILL) -> np.ndarray:
        return self.resize.apply_segmentation_within(segmentation, self.window)

    def apply_coords(self, coords_xy: np.ndarray) -> np.ndarray:
        return self.window.apply_coords(self.resize.apply_coords(coords_xy))

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.window.output_size(self.resize.output_size(size))


@dataclass(frozen=True)
class PadTransform(Transform):
    """Add pixels around an image: ``image_fill`` in the image; in labels the ``fill`` of the call."""

    left: int
    top: int
    right: int
    bottom: int
    image_fill: Fill = IMAGE_FILL

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return self._pad(image, self.image_fill)

    def apply_segmentation(self, segmentation: np.ndarray, *, fill: int = IGNORE_FILL) -> np.ndarray:
        return self._pad(segmentation, fill)

    def apply_coords(self, coords_xy: np.ndarray) -> np.ndarray:
        return coords_xy + np.array([self.left, self.top], dtype=np.float64)

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] + self.top + self.bottom, size[1] + self.left + self.right

    def _pad(self, array: np.ndarray, fill: Fill) -> np.ndarray:
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
        return _mirror(image, axis=1)

    def apply_segmentation(self, segmentation: np.ndarray, *, fill: int = IGNORE_FILL) -> np.ndarray:
        return _mirror(segmentation, axis=1)

    def apply_coords(self, coords_xy: np.ndarray) -> np.ndarray:
        return np.stack([self.width - coords_xy[:, 0], coords_xy[:, 1]], axis=1)

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size


def _mirror(array: np.ndarray, axis: int) -> np.ndarray:
    # What comes next needs pixels in order, and OpenCV brings them there forty times faster than NumPy.
    if array.dtype == bool:
        return _mirror(array.view(np.uint8), axis).view(bool)
    if array.size == 0 or array.dtype not in (np.uint8, np.int32) or (array.ndim == 3 and array.shape[2] > 4):
        return np.flip(array, axis)
    return cv2.flip(array, axis).reshape(array.shape)


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

    With ``expand`` the result is large enough to hold the whole rotated image. ``image_fill`` comes from outside of it;
    ``interp`` is OpenCV's number of the interpolation of images.
    """

    height: int
    width: int
    angle: float
    expand: bool = True
    center_xy: tuple[float, float] | None = None
    image_fill: Fill = 0
    interp: int = cv2.INTER_LINEAR

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        if isinstance(self.image_fill, int):
            return self._warp(image, self.interp, self.image_fill)
        planes = [self._warp(image[..., i], self.interp, fill) for i, fill in enumerate(self.image_fill)]
        return np.stack(planes, axis=-1)

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
        """Return the affine map (2, 3); OpenCV's pixel centres lie at integers, so images need ``offset`` -0.5."""
        middle = np.array([self.width / 2, self.height / 2])
        center = middle if self.center_xy is None else np.array(self.center_xy)
        pivot = (float(center[0] + offset), float(center[1] + offset))
        matrix = np.asarray(cv2.getRotationMatrix2D(pivot, self.angle, 1.0), dtype=np.float64)
        if self.expand:
            height, width = self.output_size((self.height, self.width))
            moved_middle = matrix[:, :2] @ (middle + offset) + matrix[:, 2]
            matrix[:, 2] = matrix[:, 2] + np.array([width / 2, height / 2]) + offset - moved_middle
        return matrix

    def _warp(self, array: np.ndarray, interpolation: int, fill: float) -> np.ndarray:
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
