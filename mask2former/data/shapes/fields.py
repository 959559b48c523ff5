"""Scalar and colour fields that the textures are made of. Fields are float32 (h, w), colours RGB in [0, 1]."""

from __future__ import annotations

import colorsys
from typing import TypeAlias

import cv2
import numpy as np

Array: TypeAlias = np.ndarray  # float32; numpy's stubs lose the type at the first multiplication
Size: TypeAlias = tuple[int, int]  # (height, width)


def smoothstep(low: float, high: float, values: Array) -> Array:
    """Return 0 below ``low``, 1 above ``high``, and a smooth cubic between them."""
    t = np.clip((values - np.float32(low)) * np.float32(1.0 / (high - low)), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def noise(rng: np.random.Generator, size: Size, *, cells: tuple[float, float], octaves: int = 4) -> Array:
    """Return fractal noise of mean 0 and standard deviation 1.

    ``cells`` (rows, columns) is the grid of the coarsest octave.
    """
    field = np.zeros(size, np.float32)
    for octave in range(octaves):
        grid = tuple(max(2, min(round(c * 2**octave) + 1, s)) for c, s in zip(cells, size, strict=True))
        values = rng.standard_normal(grid, dtype=np.float32)
        field += cv2.resize(values, size[::-1], interpolation=cv2.INTER_CUBIC) * np.float32(0.55**octave)
    field -= field.mean()
    return field / (field.std() + np.float32(1e-6))


def pixel_grid(size: Size) -> tuple[Array, Array]:
    """Return broadcastable coordinates of the pixel centres: y (h, 1) and x (1, w), both in pixels."""
    height, width = size
    y = np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5)
    x = np.arange(width, dtype=np.float32)[None, :] + np.float32(0.5)
    return y, x


def mix(first: Array, second: Array, weight: Array) -> Array:
    """(h, w, 3) blend of two colours (3,) or colour fields (h, w, 3) by a weight field (h, w) in [0, 1]."""
    if first.ndim == 1 and second.ndim == 1:
        return cv2.merge([weight * (b - a) + a for a, b in zip(first, second, strict=True)])
    return cv2.blendLinear(as_field(first, weight), as_field(second, weight), 1 - weight, weight)


def as_field(color: Array, like: Array) -> Array:
    """Return a colour (3,) as a field (h, w, 3) as the field ``like`` (h, w, …); a field stays what it is."""
    return color if color.ndim == 3 else np.tile(color, (*like.shape[:2], 1)).astype(np.float32, copy=False)


def shaded(color: Array, factor: Array) -> Array:
    """Return a colour field (h, w, 3), or a colour (3,), times a factor field (h, w)."""
    if color.ndim == 1:
        return cv2.merge([factor * c for c in color])
    return cv2.multiply(color, cv2.merge((factor, factor, factor)))


def rgb(hue: float, saturation: float, value: float) -> Array:
    """Return a colour (3,) from hue in degrees, saturation and value in [0, 1] (clipped)."""
    clipped = (min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return np.array(colorsys.hsv_to_rgb((hue % 360.0) / 360.0, *clipped), np.float32)
