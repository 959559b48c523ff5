"""Things: a shape with a style, posed in the picture and painted with texture, relief, shine and a soft shadow.

Outlines are polygons about the origin, y down, even-odd filled (a ring has two). Those of one class vary a little in
proportion, never so far that one class looks like another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from mask2former.data.shapes.classes import ShapeClass
from mask2former.data.shapes.ground import SUPERSAMPLING, downsample, fill_polygons
from mask2former.data.shapes.light import Array, Light, Size, mix, rgb, shaded, smoothstep

Outline = tuple[np.ndarray, ...]  # polygons (N, 2) of x, y; the size of a thing is its outline times a radius

# Shapes of slender build are drawn larger: scaled to this area, but only part of the way.
_TYPICAL_AREA = 2.4
_EQUALISING = 0.35


def _regular(count: int, start: float = -np.pi / 2) -> np.ndarray:
    angles = start + np.arange(count) * (2 * np.pi / count)
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def _circle(rng: np.random.Generator) -> Outline:
    return (_regular(64),)


def _square(rng: np.random.Generator) -> Outline:
    return (_regular(4, np.pi / 4),)


def _triangle(rng: np.random.Generator) -> Outline:
    return (_regular(3) * np.array([rng.uniform(0.9, 1.1), rng.uniform(0.92, 1.12)]),)


def _star(rng: np.random.Generator) -> Outline:
    points = _regular(10)
    points[1::2] *= rng.uniform(0.4, 0.5)
    return (points,)


def _ring(rng: np.random.Generator) -> Outline:
    return (_regular(64), _regular(48) * rng.uniform(0.5, 0.62))


def _cross(rng: np.random.Generator) -> Outline:
    arm = rng.uniform(0.3, 0.37)
    corner = np.array([[arm, -1.0], [arm, -arm], [1.0, -arm]])
    turns = [np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in np.arange(4) * np.pi / 2]
    return (np.concatenate([corner @ turn.T for turn in turns]),)


def _heart(rng: np.random.Generator) -> Outline:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return (np.stack([x, y - 1.5], 1) / 16.0,)


_OUTLINES: Mapping[str, Callable[[np.random.Generator], Outline]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "heart": _heart,
}


def sample_outline(rng: np.random.Generator, name: str) -> Outline:
    """Return the outline of a thing class for a radius of about 1, slightly squashed."""
    polygons = _OUTLINES[name](rng)
    scale = (_TYPICAL_AREA / _area(polygons[0])) ** _EQUALISING
    squash = np.array([rng.uniform(0.92, 1.08), 1.0])
    return tuple(polygon * scale * squash for polygon in polygons)


def _area(polygon: np.ndarray) -> float:
    x, y = polygon[:, 0], polygon[:, 1]
    return 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))


def place_outline(outline: Outline, centre: tuple[float, float], *, radius: float, angle: float) -> Outline:
    """Return polygons turned by ``angle`` (radians), scaled by ``radius`` and moved to ``centre`` (x, y)."""
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, s], [-s, c]])
    return tuple(polygon @ turn * radius + np.asarray(centre) for polygon in outline)


_MIN_CONTRAST = 0.28  # distance in RGB of a thing's colour from the ground's mean where it lies
_COLOR_TRIES = 8
TYPICAL_COLOR_ODDS = 0.7  # as strawberries are mostly red: colour hints at the class, the outline alone decides it
_HUE_SPREAD = 10.0  # standard deviation about the typical hue, in degrees
_GRAIN_TILE = 32


@dataclass(frozen=True)
class Pose:
    """Where a thing lies: ``x``, ``y`` and ``radius`` in image pixels, ``angle`` in radians."""

    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True)
class Style:
    """How a thing looks. Only the hue has to do with the class, often but not always; the outline is what tells."""

    pattern: str
    colors: tuple[Array, Array]
    frequency: float
    phase: float
    grain: Array  # tile of mottles
    grain_strength: float
    bevel: float  # width of the rounded edge as a part of the radius
    relief: float
    gloss: float
    rim: float  # darkness of the line around the edge


@dataclass(frozen=True)
class Patch:
    """The coverage of a thing on a rectangle of the canvas that may reach beyond the canvas.

    ``top`` and ``left`` are canvas pixels, whole multiples of SUPERSAMPLING; so are the sides of ``coverage``.
    """

    top: int
    left: int
    coverage: Array

    def label_mask(self) -> tuple[int, int, np.ndarray]:
        """(top, left, mask) in image pixels: the pixels that the thing covers to at least one half."""
        return self.top // SUPERSAMPLING, self.left // SUPERSAMPLING, downsample(self.coverage) >= 0.5


@dataclass(frozen=True)
class Thing:
    """A thing of a class, with its outline for a radius of about 1."""

    category: ShapeClass
    outline: Outline


def cover(thing: Thing, pose: Pose) -> Patch:
    """Return the canvas pixels that a thing in this pose covers, with a margin of at least four canvas pixels."""
    s = SUPERSAMPLING
    polygons = place_outline(thing.outline, (pose.x * s, pose.y * s), radius=pose.radius * s, angle=pose.angle)
    low = np.floor((polygons[0].min(0) - 4) / s).astype(int) * s
    high = np.ceil((polygons[0].max(0) + 4) / s).astype(int) * s
    size = (int(high[1] - low[1]), int(high[0] - low[0]))
    coverage = fill_polygons(size, [polygon - low for polygon in polygons])
    return Patch(top=int(low[1]), left=int(low[0]), coverage=coverage)


def sample_style(
    rng: np.random.Generator, category: ShapeClass, backdrop: Array, *, typical_color_odds: float = TYPICAL_COLOR_ODDS
) -> Style:
    """Return a random style for a thing whose main colour stands out from the mean colour (3,) of what lies behind."""
    hue, color = 0.0, backdrop
    typical_hue = category.typical_hue
    if typical_hue is not None and rng.random() >= typical_color_odds:
        typical_hue = None
    for _ in range(_COLOR_TRIES):
        hue = rng.uniform(0, 360) if typical_hue is None else rng.normal(typical_hue, _HUE_SPREAD)
        color = rgb(hue, rng.uniform(0.35, 0.95), rng.uniform(0.5, 1.0))
        if np.linalg.norm(color - backdrop) >= _MIN_CONTRAST:
            break
    shift = rng.choice([rng.normal(0, 18), rng.uniform(60, 300)])
    second = rgb(hue + shift, rng.uniform(0.25, 0.9), rng.uniform(0.45, 1.0))
    return Style(
        pattern=str(rng.choice(list(_PATTERNS), p=_PATTERN_ODDS)),
        colors=(color, second),
        frequency=rng.uniform(2.5, 5.5),
        phase=rng.uniform(0, 2 * math.pi),
        grain=cv2.GaussianBlur(rng.standard_normal((_GRAIN_TILE, _GRAIN_TILE), dtype=np.float32), (0, 0), 0.8),
        grain_strength=rng.uniform(0.0, 0.16),
        bevel=rng.uniform(0.1, 0.4),
        relief=rng.uniform(0.15, 0.45),
        gloss=rng.uniform(0.0, 0.4),
        rim=rng.uniform(0.0, 0.45),
    )


def _edge(wave: Array, pixels_per_unit: float) -> Array:
    """Return a wave turned into stripes with edges about a pixel wide."""
    return np.clip(np.float32(0.5) + wave * np.float32(0.4 * pixels_per_unit), 0, 1)


def _plain(u: Array, v: Array, style: Style, pixels: float) -> Array:
    return np.zeros_like(u)


def _gradient(u: Array, v: Array, style: Style, pixels: float) -> Array:
    return smoothstep(-0.9, 0.9, v)


def _stripes(u: Array, v: Array, style: Style, pixels: float) -> Array:
    return _edge(np.sin(u * np.float32(style.frequency * 1.6) + np.float32(style.phase)), pixels / style.frequency)


def _checks(u: Array, v: Array, style: Style, pixels: float) -> Array:
    f, p = np.float32(style.frequency), np.float32(style.phase)
    return _edge(np.sin(u * f + p) * np.sin(v * f + p), pixels / style.frequency)


def _dots(u: Array, v: Array, style: Style, pixels: float) -> Array:
    f, p = np.float32(style.frequency * 1.5), np.float32(style.phase)
    return _edge(np.cos(u * f + p) + np.cos(v * f + p) - np.float32(0.9), pixels / style.frequency)


def _waves(u: Array, v: Array, style: Style, pixels: float) -> Array:
    bent = v + np.sin(u * np.float32(4.0) + np.float32(style.phase)) * np.float32(0.18)
    return _edge(np.sin(bent * np.float32(style.frequency * 1.7)), pixels / style.frequency)


_PATTERNS: dict[str, Callable[[Array, Array, Style, float], Array]] = {
    "plain": _plain,
    "gradient": _gradient,
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "waves": _waves,
}
_PATTERN_ODDS = (0.4, 0.26, 0.12, 0.06, 0.08, 0.08)


def _window(patch: Patch, canvas_size: Size) -> tuple[slice, slice, slice, slice] | None:
    """Return rows and columns of the canvas and of the patch where they overlap, or None."""
    height, width = patch.coverage.shape
    y0, x0 = max(patch.top, 0), max(patch.left, 0)
    y1, x1 = min(patch.top + height, canvas_size[0]), min(patch.left + width, canvas_size[1])
    if y0 >= y1 or x0 >= x1:
        return None
    inner = slice(y0 - patch.top, y1 - patch.top), slice(x0 - patch.left, x1 - patch.left)
    return slice(y0, y1), slice(x0, x1), *inner


def cast_shadow(canvas: Array, patch: Patch, *, radius: float, light: Light) -> None:
    """Darken the canvas where a thing of ``radius`` image pixels, floating a little above it, keeps the light off."""
    softness = SUPERSAMPLING * (0.6 + light.shadow_softness * radius)
    reach = SUPERSAMPLING * (1.2 + 0.14 * radius)
    pad = SUPERSAMPLING * math.ceil(1 + 1.2 * softness)
    shade = cv2.copyMakeBorder(patch.coverage, pad, pad, pad, pad, cv2.BORDER_CONSTANT)
    shade = cv2.GaussianBlur(shade, (0, 0), softness)
    dx, dy = (-round(reach * d) for d in light.direction)
    cast = Patch(top=patch.top - pad + dy, left=patch.left - pad + dx, coverage=shade)
    window = _window(cast, canvas.shape[:2])
    if window is not None:
        rows, columns, inner_rows, inner_columns = window
        factor = 1 - shade[inner_rows, inner_columns] * np.float32(light.shadow)
        canvas[rows, columns] = shaded(canvas[rows, columns], factor)


def paint(canvas: Array, patch: Patch, pose: Pose, *, style: Style, light: Light) -> None:
    """Paint a thing on the canvas (h, w, 3) in place."""
    window = _window(patch, canvas.shape[:2])
    if window is None:
        return
    rows, columns, inner_rows, inner_columns = window
    color = _surface(patch, pose, style, light)[inner_rows, inner_columns]
    canvas[rows, columns] = mix(canvas[rows, columns], color, patch.coverage[inner_rows, inner_columns])


def _surface(patch: Patch, pose: Pose, style: Style, light: Light) -> Array:
    """Return the colour (h, w, 3) of a thing over its whole patch."""
    s, (height, width) = SUPERSAMPLING, patch.coverage.shape
    radius = np.float32(pose.radius * s)
    x = (np.arange(width, dtype=np.float32)[None] + np.float32(patch.left + 0.5 - pose.x * s)) / radius
    y = (np.arange(height, dtype=np.float32)[:, None] + np.float32(patch.top + 0.5 - pose.y * s)) / radius
    c, n = np.float32(math.cos(pose.angle)), np.float32(math.sin(pose.angle))
    u, v = x * c + y * n, y * c - x * n  # the thing's own axes: its texture turns with it
    color = mix(*style.colors, _PATTERNS[style.pattern](u, v, style, float(radius)))
    mottle = cv2.remap(
        style.grain, u * 10 + _GRAIN_TILE / 2, v * 10 + _GRAIN_TILE / 2, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    )
    towards_light = x * np.float32(light.direction[0]) + y * np.float32(light.direction[1])
    slope, rim = _bevel(patch.coverage, style, light, float(radius))
    tone = 1 + mottle * np.float32(style.grain_strength) + towards_light * np.float32(0.14)
    tone += slope * np.float32(style.relief) - rim * np.float32(style.rim)
    shine = np.exp(-((x - light.direction[0] * 0.45) ** 2 + (y - light.direction[1] * 0.45) ** 2) * np.float32(9))
    shine = shine * np.float32(style.gloss) + np.clip(slope - np.float32(0.55), 0, 1) * np.float32(style.gloss)
    return np.clip(shaded(color, tone) + shine[..., None], 0, 1)


def _bevel(coverage: Array, style: Style, light: Light, radius: float) -> tuple[Array, Array]:
    """Return how far the rounded edge faces the light, in [-1, 1], and how close the edge is, in [0, 1]."""
    inside = (coverage >= 0.5).astype(np.uint8)
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, 3)
    width = max(style.bevel * radius, 2.0 * SUPERSAMPLING)
    height = cv2.GaussianBlur(np.sqrt(np.clip(distance / width, 0, 1)), (0, 0), 0.12 * width + 0.8)
    down = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3)
    across = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3)
    slope = -(across * np.float32(light.direction[0]) + down * np.float32(light.direction[1]))
    slope = np.clip(slope * np.float32(width / 8.0), -1, 1)
    rim = np.clip(1 - distance / np.float32(1.5 * SUPERSAMPLING), 0, 1)
    return slope, rim
