"""The stuff of a scene: which regions there are, where they lie, and the canvas they are painted on.

A canvas is float32 RGB in [0, 1], SUPERSAMPLING times finer than the image; label maps have the image's size. Each
texture paints a whole canvas (h, w, 3), of which the layout cuts its region; ``depth`` (h, 1) runs from 0 at the
horizon to 1 at the bottom (constant 1 seen from above) and scales the pattern with distance, so that the ground lies
flat.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from mask2former.data.shapes.light import Array, Light, Size, mix, noise, pixel_grid, rgb, shaded, smoothstep

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


def _road_texture(rng: np.random.Generator, size: Size, depth: Array, light: Light) -> Array:
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
    "road": _road_texture,
}

SUPERSAMPLING = 2
_SUBPIXEL_BITS = 4  # cv2 draws polygons with fixed-point vertices
_LANDS = ("grass", "sand", "rock", "water")


@dataclass(frozen=True)
class Region:
    """One stuff region: its class and its coverage (h, w) of the canvas in [0, 1]; later regions lie above."""

    name: str
    coverage: Array
    markings: Array | None = None  # paint on a road


@dataclass(frozen=True)
class Ground:
    """``canvas`` (S*H, S*W, 3) and ``names[labels]``, the class of each of the (H, W) pixels."""

    canvas: Array
    names: tuple[str, ...]
    labels: np.ndarray


def fill_polygons(size: Size, polygons: list[np.ndarray]) -> Array:
    """Return antialiased even-odd coverage (h, w) in [0, 1] of polygons (N, 2) of x, y in pixels."""
    image = np.zeros(size, np.uint8)
    points = [np.rint((p - 0.5) * (1 << _SUBPIXEL_BITS)).astype(np.int32) for p in polygons]
    cv2.fillPoly(image, points, 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    return image.astype(np.float32) * np.float32(1 / 255)


def downsample(field: np.ndarray) -> np.ndarray:
    """Return the mean over each SUPERSAMPLING x SUPERSAMPLING block."""
    size = (field.shape[1] // SUPERSAMPLING, field.shape[0] // SUPERSAMPLING)
    return cv2.resize(field, size, interpolation=cv2.INTER_AREA)


def draw_ground(rng: np.random.Generator, size: Size, light: Light) -> Ground:
    """Choose and paint the ground of an image of ``size`` (H, W)."""
    fine = (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING)
    view = rng.random()
    if view < 0.62:
        horizon = rng.uniform(0.22, 0.6)
        regions = _landscape(rng, fine, horizon)
    elif view < 0.9:
        horizon = -4.0  # far above the picture: seen from above, hardly any perspective
        regions = _aerial(rng, fine)
    else:
        horizon = -4.0
        regions = [Region(str(rng.choice(["sky", *_LANDS])), np.ones(fine, np.float32))]
    return _paint(rng, fine, regions, horizon, light)


def _paint(rng: np.random.Generator, fine: Size, regions: list[Region], horizon: float, light: Light) -> Ground:
    y, _ = pixel_grid(fine)
    depth = np.clip((y / np.float32(fine[0]) - np.float32(horizon)) / np.float32(1 - horizon), 0.002, 1)
    names = tuple(dict.fromkeys(region.name for region in regions))
    textures = {name: TEXTURES[name](rng, fine, depth, light) for name in names}
    canvas = textures[regions[0].name].copy()
    labels = np.full((fine[0] // SUPERSAMPLING, fine[1] // SUPERSAMPLING), names.index(regions[0].name), np.uint8)
    for region in regions[1:]:
        # The upper region casts a little shade on what it borders, which separates the two.
        rim = cv2.GaussianBlur(region.coverage, (0, 0), 2.5 * SUPERSAMPLING / 2)
        canvas = shaded(canvas, np.float32(1.0) - rim * np.float32(0.3))
        canvas = mix(canvas, textures[region.name], region.coverage)
        if region.markings is not None:
            canvas = mix(canvas, np.array([0.93, 0.9, 0.78], np.float32), region.markings)
        labels[downsample(region.coverage) >= 0.5] = names.index(region.name)
    return Ground(np.clip(canvas, 0, 1), names, labels)


def _below(boundary: Array, fine: Size) -> Array:
    """Return the coverage of what lies below a boundary (w,) given as y in pixels."""
    y, _ = pixel_grid(fine)
    return np.clip(y - boundary[None, :] + np.float32(0.5), 0, 1)


def _skyline(rng: np.random.Generator, width: int, *, cells: float, octaves: int) -> Array:
    return noise(rng, (2, width), cells=(1, cells), octaves=octaves)[0]


def _landscape(rng: np.random.Generator, fine: Size, horizon: float) -> list[Region]:
    height, width = fine
    regions = [Region("sky", np.ones(fine, np.float32))]
    mountains = rng.random() < 0.4
    if mountains:
        rise = rng.uniform(0.06, 0.14) * height
        ridge = _skyline(rng, width, cells=rng.uniform(2, 5), octaves=5) * rise * 0.6
        regions.append(Region("rock", _below(horizon * height - rise - ridge, fine)))
    lands = [str(name) for name in rng.permutation([n for n in _LANDS if not (mountains and n == "rock")])]
    count = int(rng.choice([1, 2, 3], p=[0.42, 0.43, 0.15]))
    top = horizon
    for index, name in enumerate(lands[:count]):
        # Far water ends in a straight line, far land in a gently rolling one.
        roll = 0.0 if index == 0 and name == "water" else rng.uniform(0.005, 0.03 if index == 0 else 0.05)
        line = np.float32(top * height) + _skyline(rng, width, cells=rng.uniform(1, 3), octaves=3) * roll * height
        regions.append(Region(name, _below(line.astype(np.float32), fine)))
        top += (1 - top) * rng.uniform(0.3, 0.6)
    if "water" not in lands[:count] and rng.random() < 0.45:
        regions.append(_road_to_horizon(rng, fine, horizon + 0.02))
    return regions


def _road_to_horizon(rng: np.random.Generator, fine: Size, horizon: float) -> Region:
    height, width = fine
    t = np.linspace(0.0, 1.0, 24)  # 0 at the horizon
    start, end = rng.uniform(0.2, 0.8) * width, rng.uniform(0.1, 0.9) * width
    bend = rng.uniform(-0.12, 0.12) * width * np.sin(t * math.pi * rng.uniform(0.8, 1.6))
    x = start + (end - start) * t**1.3 + bend
    y = (horizon + (1.04 - horizon) * t) * height
    half = (0.025 + rng.uniform(0.14, 0.24) * t) * width
    return _road(fine, np.stack([x, y], 1), np.stack([half, np.zeros_like(half)], 1), dashes=t**0.6 * 7)


def _road_from_above(rng: np.random.Generator, fine: Size) -> Region:
    span = math.hypot(*fine)
    angle = rng.uniform(0, math.pi)
    along = np.array([math.cos(angle), math.sin(angle)])
    across = np.array([-along[1], along[0]])
    t = np.linspace(-0.6, 0.6, 24)
    bend = rng.uniform(-0.16, 0.16) * np.cos(t * rng.uniform(2, 6) + rng.uniform(0, 6)) + rng.uniform(-0.15, 0.15)
    centre = np.array([fine[1], fine[0]]) / 2 + span * (t[:, None] * along + bend[:, None] * across)
    half = rng.uniform(0.065, 0.1) * min(fine)
    return _road(fine, centre, np.broadcast_to(half * across, centre.shape), dashes=(t + 0.6) * 9)


def _road(fine: Size, centre: np.ndarray, half: np.ndarray, *, dashes: np.ndarray) -> Region:
    """Return a ribbon about a centre line (N, 2) with half widths (N, 2).

    ``dashes`` (N,) counts the dashes along it.
    """
    outline = np.concatenate([centre + half, (centre - half)[::-1]])
    marks = []
    for k in range(int(dashes.min()), math.ceil(dashes.max())):
        s = np.linspace(k, k + 0.5, 4)
        middle = np.stack([np.interp(s, dashes, centre[:, i]) for i in range(2)], 1)
        side = np.stack([np.interp(s, dashes, half[:, i]) for i in range(2)], 1) * 0.07
        marks.append(np.concatenate([middle + side, (middle - side)[::-1]]))
    for edge in (-0.88, 0.88):
        marks.append(np.concatenate([centre + half * edge, (centre + half * (edge + 0.05))[::-1]]))
    coverage = fill_polygons(fine, [outline])
    return Region("road", coverage, markings=fill_polygons(fine, marks) * coverage * np.float32(0.8))


def _aerial(rng: np.random.Generator, fine: Size) -> list[Region]:
    lands = [str(name) for name in rng.permutation(_LANDS)]
    regions = [Region(lands[0], np.ones(fine, np.float32))]
    for name in lands[1 : 1 + int(rng.choice([1, 2], p=[0.65, 0.35]))]:
        field = noise(rng, fine, cells=(1.5, 1.5), octaves=2)
        level = np.float32(rng.uniform(-0.1, 0.6))
        # A step of one pixel across the contour, whatever the field's slope there.
        slope = cv2.GaussianBlur(np.hypot(*np.gradient(field)).astype(np.float32), (0, 0), 4) + np.float32(1e-4)
        regions.append(Region(name, np.clip((field - level) / slope + np.float32(0.5), 0, 1)))
    if rng.random() < 0.4:
        regions.append(_road_from_above(rng, fine))
    return regions
