"""Time of day and light of a scene: sky colours, direction, tint, what a lens and a sensor add; fields for textures.

Fields are float32 (h, w), colours RGB in [0, 1].
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
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


# Sky at the zenith, sky at the horizon, tint of everything that is lit; RGB, 0-255 and factors.
_HOURS: tuple[tuple[tuple[int, int, int], tuple[int, int, int], tuple[float, float, float]], ...] = (
    ((62, 126, 214), (186, 218, 245), (1.00, 1.00, 0.98)),  # noon
    ((104, 164, 224), (252, 228, 202), (1.05, 1.00, 0.93)),  # morning
    ((82, 96, 168), (255, 176, 116), (1.12, 0.96, 0.82)),  # sunset
    ((142, 158, 176), (206, 214, 220), (0.95, 0.97, 1.00)),  # overcast
    ((52, 60, 118), (196, 142, 168), (0.84, 0.83, 0.98)),  # dusk
)
_HOUR_ODDS = (0.36, 0.22, 0.16, 0.16, 0.10)


@dataclass(frozen=True)
class Light:
    """``direction`` (x, y) is the unit vector in the image plane towards the light."""

    direction: tuple[float, float]
    sky_top: Array
    sky_bottom: Array
    tint: Array
    shadow: float
    shadow_softness: float


def sample_light(rng: np.random.Generator) -> Light:
    """Return the light of a time of day, from a direction above the picture."""
    top, bottom, tint = _HOURS[rng.choice(len(_HOURS), p=_HOUR_ODDS)]
    angle = math.radians(rng.uniform(-150.0, -30.0))
    return Light(
        direction=(math.cos(angle), math.sin(angle)),
        sky_top=np.clip(np.array(top, np.float32) / 255 + rng.normal(0, 0.02, 3), 0, 1).astype(np.float32),
        sky_bottom=np.clip(np.array(bottom, np.float32) / 255 + rng.normal(0, 0.02, 3), 0, 1).astype(np.float32),
        tint=(np.array(tint) * rng.normal(1.0, 0.015, 3)).astype(np.float32),
        shadow=rng.uniform(0.3, 0.6),
        shadow_softness=rng.uniform(0.08, 0.2),
    )


def sample_exposure(rng: np.random.Generator, size: Size, light: Light) -> Array:
    """Return a factor (h, w, 3): brighter towards the light, darker in the corners, tinted by the time of day."""
    y, x = pixel_grid(size)
    y, x = y / size[0] * 2 - 1, x / size[1] * 2 - 1
    slope = np.float32(rng.uniform(0.04, 0.16))
    vignette = np.float32(rng.uniform(0.02, 0.12))
    level = np.float32(rng.uniform(0.92, 1.06))
    field = level + slope * (x * np.float32(light.direction[0]) + y * np.float32(light.direction[1]))
    field = field - vignette * (x * x + y * y)
    return shaded(light.tint, field)


@dataclass(frozen=True)
class Camera:
    """``blur`` in canvas pixels, ``grain`` the standard deviation of the sensor noise on a 0-255 scale."""

    blur: float
    grain: float


def sample_camera(rng: np.random.Generator) -> Camera:
    """Return a camera of medium quality."""
    return Camera(blur=rng.uniform(0.3, 1.1), grain=rng.uniform(0.8, 4.0))


def develop(rng: np.random.Generator, canvas: Array, camera: Camera, size: Size) -> np.ndarray:
    """Return the picture (H, W, 3) uint8 that the camera takes of a supersampled canvas in [0, 1]."""
    canvas = cv2.GaussianBlur(canvas, (0, 0), camera.blur)
    picture = cv2.resize(canvas, size[::-1], interpolation=cv2.INTER_AREA) * np.float32(255.0)
    # Two thirds of the grain is common to the three channels, as luminance noise is in photographs.
    grain = rng.standard_normal((*size, 4), dtype=np.float32) * np.float32(camera.grain)
    picture += grain[..., :1] * np.float32(0.8) + grain[..., 1:] * np.float32(0.45)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)
