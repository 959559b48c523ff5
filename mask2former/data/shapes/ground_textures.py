"""Textures of the stuff classes. Each paints a whole canvas (h, w, 3) in [0, 1]; the layout cuts its region out.

``depth`` (h, 1) runs from 0 at the horizon to 1 at the bottom (constant 1 seen from above) and scales the pattern with
distance, so that the ground lies flat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import cv2
import numpy as np

from mask2former.data.shapes.fields import Array, Size, mix, noise, pixel_grid, rgb, shaded, smoothstep
from mask2former.data.shapes.light import Light

Texture = Callable[[np.random.Generator, Size, Array, Light], Array]


def _rows(depth: Array) -> Array:
    """Foreshortened distance (h, 1), 0 at the top of the canvas to 1 at its bottom: where waves and ripples lie."""
    rows = np.sqrt(depth)
    return (rows - rows[0]) / (rows[-1] - rows[0])


def _sky(rng: np.random.Generator, size: Size, depth: Array, light: Light) -> Array:
    y, x = pixel_grid(size)
    height = np.float32(rng.uniform(0.6, 1.2) * size[0])
    color = mix(light.sky_top, light.sky_bottom, np.repeat(np.clip(y / height, 0, 1), size[1], 1))
    glow_x = (0.5 + 0.5 * light.direction[0]) * size[1]
    distance = ((x - np.float32(glow_x)) ** 2 + (y - np.float32(0.1 * size[0])) ** 2) / np.float32(size[1] ** 2)
    color += shaded(light.tint * np.float32(0.12), np.exp(distance * np.float32(-9.0)))
    if rng.random() < 0.75:
        cover = rng.uniform(-0.2, 1.1)
        clouds = noise(rng, size, cells=(rng.uniform(3, 5), rng.uniform(1.5, 3)), octaves=5)
        white = np.minimum(light.sky_bottom * np.float32(0.35) + np.float32(0.66), np.float32(1.0))
        shade = clouds - np.roll(clouds, (-3, -2), (0, 1))
        body = mix(white, white + np.float32(0.12), np.clip(shade, -1, 1))
        color = mix(color, body, smoothstep(cover, cover + 1.5, clouds) * np.float32(rng.uniform(0.6, 0.95)))
    return color


def _water(rng: np.random.Generator, size: Size, depth: Array, light: Light) -> Array:
    deep = rgb(rng.uniform(192, 218), rng.uniform(0.6, 0.85), rng.uniform(0.38, 0.58))
    shallow = rgb(rng.uniform(172, 196), rng.uniform(0.4, 0.6), rng.uniform(0.6, 0.78))
    _, x = pixel_grid(size)
    swell = noise(rng, size, cells=(9, 2.5), octaves=3)
    waves = np.float32(rng.uniform(11, 17)) * _rows(depth) * np.float32(2 * np.pi) + swell * np.float32(1.1)
    crest = np.sin(waves + x * np.float32(rng.uniform(-0.02, 0.02)))
    ripple = noise(rng, size, cells=(34, 11), octaves=2)
    color = mix(deep, shallow, np.clip(np.float32(0.42) + swell * 0.16 + crest * 0.2, 0, 1))
    color = mix(color, light.sky_bottom, np.repeat((1 - depth) ** 3 * np.float32(0.5), size[1], 1))
    glint = smoothstep(1.2, 2.3, ripple + crest * np.float32(0.55))
    return color + shaded(light.tint * np.float32(rng.uniform(0.22, 0.45)), glint)


def _grass(rng: np.random.Generator, size: Size, depth: Array, light: Light) -> Array:
    hue = rng.uniform(78, 118)
    dark = rgb(hue + 12, rng.uniform(0.5, 0.75), rng.uniform(0.28, 0.4))
    pale = rgb(hue - 14, rng.uniform(0.45, 0.7), rng.uniform(0.52, 0.72))
    patches = noise(rng, size, cells=(5, 4), octaves=3)
    blades = noise(rng, size, cells=(22, 60), octaves=2)
    color = mix(dark, pale, np.clip(np.float32(0.5) + patches * np.float32(0.18) + blades * np.float32(0.2), 0, 1))
    if rng.random() < 0.35:
        _scatter_flowers(rng, color, depth)
    return color


def _scatter_flowers(rng: np.random.Generator, color: Array, depth: Array) -> None:
    height, width = color.shape[:2]
    petal = rgb(rng.choice([0.0, 48.0, 285.0, 330.0]), rng.uniform(0.1, 0.6), 0.95)
    count = int(rng.uniform(0.0006, 0.002) * height * width)
    rows, columns = rng.integers(0, height, count), rng.integers(0, width, count)
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        radius = 1 if depth[row, 0] < 0.5 else 2
        cv2.circle(color, (column, row), radius, petal.tolist(), cv2.FILLED, cv2.LINE_AA)


def _sand(rng: np.random.Generator, size: Size, depth: Array, light: Light) -> Array:
    hue = rng.uniform(33, 46)
    base = rgb(hue, rng.uniform(0.28, 0.46), rng.uniform(0.8, 0.92))
    shade = rgb(hue - 7, rng.uniform(0.42, 0.58), rng.uniform(0.6, 0.72))
    _, x = pixel_grid(size)
    dunes = noise(rng, size, cells=(3, 2.5), octaves=3)
    lines = np.float32(rng.uniform(16, 24)) * _rows(depth) * np.float32(2 * np.pi)
    ripples = np.sin(lines + dunes * np.float32(2.2) + x * np.float32(rng.uniform(-0.05, 0.05)))
    grain = rng.standard_normal(size, dtype=np.float32)
    tone = np.float32(0.36) + dunes * np.float32(0.16) + ripples * np.float32(0.13) + grain * np.float32(0.09)
    return mix(base, shade, np.clip(tone, 0, 1))


def _rock(rng: np.random.Generator, size: Size, depth: Array, light: Light) -> Array:
    hue, saturation = rng.uniform(8, 34), rng.uniform(0.06, 0.28)
    if rng.random() < 0.3:
        hue, saturation = rng.uniform(205, 240), rng.uniform(0.05, 0.16)
    base = rgb(hue, saturation, rng.uniform(0.42, 0.6))
    relief = -np.abs(noise(rng, size, cells=(5, 5), octaves=5))  # ridged: creases where the noise changes sign
    relief += noise(rng, size, cells=(3, 3), octaves=2) * np.float32(0.5)
    lit = relief - cv2.warpAffine(
        relief,
        np.array([[1, 0, -2.0 * light.direction[0]], [0, 1, -2.0 * light.direction[1]]], np.float32),
        size[::-1],
        borderMode=cv2.BORDER_REPLICATE,
    )
    tone = np.float32(1.0) - np.clip(lit, -1.2, 1.2) * np.float32(0.5) + relief * np.float32(0.12)
    return shaded(base, np.clip(tone, 0.25, 1.8))


def _road(rng: np.random.Generator, size: Size, depth: Array, light: Light) -> Array:
    base = rgb(rng.uniform(210, 260), rng.uniform(0.03, 0.1), rng.uniform(0.24, 0.36))
    grain = rng.standard_normal(size, dtype=np.float32) * np.float32(0.09)
    stains = noise(rng, size, cells=(4, 4), octaves=2) * np.float32(0.07)
    return shaded(base, np.float32(1.0) + grain + stains)


TEXTURES: Mapping[str, Texture] = {
    "sky": _sky,
    "rock": _rock,
    "grass": _grass,
    "sand": _sand,
    "water": _water,
    "road": _road,
}
