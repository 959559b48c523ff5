"""The stuff of a scene: which regions there are, where they lie, and the canvas they are painted on.

A canvas is float32 RGB in [0, 1], SUPERSAMPLING times finer than the image; label maps have the image's size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from mask2former.data.shapes.fields import Array, Size, mix, noise, pixel_grid, shaded
from mask2former.data.shapes.ground_textures import TEXTURES
from mask2former.data.shapes.light import Light

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
