"""Colours of classes as people see them, those who lack a kind of cone among them."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest

from mask2former.visualization.canvas import class_color

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
SIGHTS = {
    "usual": np.eye(3),
    "protanope": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranope": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}


def _seen(colors: np.ndarray, sight: str) -> np.ndarray:
    """CIELAB of colours (N, 3) uint8 RGB as somebody sees them."""
    values = colors / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ SIGHTS[sight].T, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return cv2.cvtColor(encoded[None].astype(np.float32), cv2.COLOR_RGB2LAB)[0].astype(np.float64)


def _ciede2000(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """CIEDE2000 of colours (…, 3) in CIELAB (Sharma, Wu and Dalal 2005)."""
    chroma_mean = (np.hypot(a[..., 1], a[..., 2]) + np.hypot(b[..., 1], b[..., 2])) / 2
    stretch = 1.5 - 0.5 * np.sqrt(chroma_mean**7 / (chroma_mean**7 + 25.0**7))
    reds = [values[..., 1] * stretch for values in (a, b)]
    chromas = [np.hypot(red, values[..., 2]) for red, values in zip(reds, (a, b))]
    hues = [np.degrees(np.arctan2(values[..., 2], red)) % 360 for red, values in zip(reds, (a, b))]
    turn = (hues[1] - hues[0] + 180) % 360 - 180
    hue_step = 2 * np.sqrt(chromas[0] * chromas[1]) * np.sin(np.radians(turn / 2))
    lightness, chroma, hue = (a[..., 0] + b[..., 0]) / 2, (chromas[0] + chromas[1]) / 2, (hues[0] + turn / 2) % 360
    weight = sum(
        factor * np.cos(np.radians(times * hue + shift))
        for factor, times, shift in ((1, 0, 0), (-0.17, 1, -30), (0.24, 2, 0), (0.32, 3, 6), (-0.2, 4, -63))
    )
    light_term = (b[..., 0] - a[..., 0]) / (1 + 0.015 * (lightness - 50) ** 2 / np.sqrt(20 + (lightness - 50) ** 2))
    chroma_term = (chromas[1] - chromas[0]) / (1 + 0.045 * chroma)
    hue_term = hue_step / (1 + 0.015 * chroma * weight)
    angle = np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2)))
    rotation = -2 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7)) * np.sin(angle)
    return np.sqrt(light_term**2 + chroma_term**2 + hue_term**2 + rotation * chroma_term * hue_term)


def test_colour_difference_is_that_of_the_standard() -> None:
    # Two pairs of the test data of Sharma, Wu and Dalal.
    first = np.array([[50.0, 2.6772, -79.7751], [60.2574, -34.0099, 36.2677]])
    second = np.array([[50.0, 0.0, -82.7485], [60.4626, -34.1751, 39.4387]])
    np.testing.assert_allclose(_ciede2000(first, second), [2.0425, 1.2644], atol=1e-4)


@pytest.mark.parametrize(("sight", "least"), [("usual", 20), ("protanope", 9), ("deuteranope", 9)])
def test_twenty_classes_differ_for_every_sight(sight: str, least: float) -> None:
    lab = _seen(np.stack([class_color(index) for index in range(20)]), sight)
    differences = _ciede2000(lab[:, None], lab[None])
    assert differences[np.triu_indices(20, 1)].min() >= least


def test_colours_are_the_same_in_every_process() -> None:
    code = (
        "from mask2former.visualization.canvas import class_color; print([class_color(i).tolist() for i in range(40)])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == str([class_color(index).tolist() for index in range(40)])
