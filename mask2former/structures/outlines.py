"""Outlines of masks along the edges of their pixels: drawn again, they are the same mask to the pixel."""

from __future__ import annotations

import numpy as np

Point = tuple[int, int]


def mask_to_rings(mask: np.ndarray) -> list[list[Point]]:
    """Closed rings of corners (x, y) around the parts of a mask (H, W) bool, and around its holes.

    What an odd number of rings encloses is inside.
    """
    padded = np.pad(mask.astype(np.int8), 1)
    ahead: dict[Point, list[Point]] = {}
    for axis in (0, 1):
        steps = np.diff(padded, axis=axis)
        for y, x in np.argwhere(steps).tolist():
            # Inside lies to the right of the way; a corner that two parts share has two ways out.
            begin, end = ((x - 1, y), (x, y)) if axis == 0 else ((x, y), (x, y - 1))
            if steps[y, x] < 0:
                begin, end = end, begin
            ahead.setdefault(begin, []).append(end)
    rings = []
    while ahead:
        start = next(iter(ahead))
        ring, here = [], start
        while True:
            ring.append(here)
            following = ahead[here].pop()
            if not ahead[here]:
                del ahead[here]
            here = following
            if here == start:
                break
        rings.append(_without_straight(ring))
    return rings


def rings_to_polygon(rings: list[list[Point]]) -> list[Point]:
    """One polygon of all rings, joined by ways that are gone there and back, which enclose nothing."""
    first, *others = rings
    polygon = [*first, first[0]] if others else list(first)
    for ring in others:
        polygon += [*ring, ring[0], first[0]]
    return polygon[:-1] if others else polygon


def _without_straight(ring: list[Point]) -> list[Point]:
    """The corners where the way turns."""
    turns = []
    for (x0, y0), (x1, y1), (x2, y2) in zip([ring[-1], *ring[:-1]], ring, [*ring[1:], ring[0]], strict=True):
        if (x1 - x0, y1 - y0) != (x2 - x1, y2 - y1):
            turns.append((x1, y1))
    return turns
