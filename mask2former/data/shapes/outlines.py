"""Outlines of the thing classes: polygons about the origin, y down, even-odd filled (a ring has two).

Outlines of one class vary a little in proportion, never so far that one class looks like another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

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
