"""Colours: a fixed one for each class, and similar, distinguishable ones for its instances."""

from __future__ import annotations

import cv2
import numpy as np

# Successive multiples of the golden angle fill the hue circle evenly for any number of classes. Classes whose hues
# come close are a Fibonacci number apart (13, 21, 34, 55), and four lightnesses tell those from each other.
GOLDEN_ANGLE = 137.50776
_LIGHTNESS = (66.0, 54.0, 76.0, 45.0)
_CHROMA = (55.0, 55.0, 45.0, 50.0)
# (hue in degrees, lightness) offsets of the first, second, ... instance of a class; the first keeps the class colour.
_INSTANCE_OFFSETS = ((0, 0), (24, 12), (-24, -12), (12, -18), (-12, 16), (36, -6), (-36, 8), (0, 22), (0, -24))


def class_color(class_id: int) -> np.ndarray:
    """Return the colour (3,) uint8 RGB of a class; depends on the class id alone."""
    hue = np.deg2rad(20.0 + class_id * GOLDEN_ANGLE)
    lightness, chroma = _LIGHTNESS[class_id % 4], _CHROMA[class_id % 4]
    return _lab_to_rgb(lightness, chroma * float(np.cos(hue)), chroma * float(np.sin(hue)))


def instance_color(base: np.ndarray, ordinal: int) -> np.ndarray:
    """Return the colour (3,) uint8 RGB of an instance of a class of colour ``base``; ``ordinal`` 0 gets ``base``."""
    if ordinal == 0:
        return np.asarray(base, dtype=np.uint8)
    lab = cv2.cvtColor(np.asarray(base, dtype=np.float32).reshape(1, 1, 3) / 255.0, cv2.COLOR_RGB2LAB).reshape(3)
    hue_offset, lightness_offset = _INSTANCE_OFFSETS[ordinal % len(_INSTANCE_OFFSETS)]
    # Beyond one round of the table, every further round is turned a little.
    hue_offset += 7 * (ordinal // len(_INSTANCE_OFFSETS))
    chroma = max(float(np.hypot(lab[1], lab[2])), 25.0)
    hue = float(np.arctan2(lab[2], lab[1])) + np.deg2rad(hue_offset)
    lightness = float(np.clip(lab[0] + lightness_offset, 35.0, 80.0))
    return _lab_to_rgb(lightness, chroma * float(np.cos(hue)), chroma * float(np.sin(hue)))


def _lab_to_rgb(lightness: float, a: float, b: float) -> np.ndarray:
    rgb = cv2.cvtColor(np.array([[[lightness, a, b]]], dtype=np.float32), cv2.COLOR_LAB2RGB)
    return np.clip(np.rint(rgb.reshape(3) * 255.0), 0, 255).astype(np.uint8)
