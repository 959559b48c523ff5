"""Paint segments over an image: translucent fill, anti-aliased outline with a dark halo, one label each.

Outlines come from a signed distance: a straight mask edge blurred by a Gaussian is its cumulative distribution, so the
inverse of that distribution gives the distance to the edge in fractions of a pixel. Each class has one colour, and its
instances similar, distinguishable ones.
Shapes: H W of the given image, h w of the (possibly enlarged) canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.special import ndtri

from mask2former.errors import InputError
from mask2former.visualization.labels import Segment, draw_labels

# Below this length of the shorter side text would be larger than what it names, so the picture is enlarged.
MIN_CANVAS_SIDE = 600
MAX_ENLARGEMENT = 8.0
_SMALLEST_LABELS, _LARGEST_LABELS = 0.25, 8.0
_EDGE_BLUR = 0.45  # of an image pixel: rounds the stairs of an enlarged mask, yet a single pixel survives


@dataclass(frozen=True)
class Style:
    """How segments are drawn.

    ``alpha``: opacity of the fill, 0..1; ``label_size``: of the text, 1 is the usual one; ``labels``: whether there are
    any; ``contours``: outlines alone, without a fill.
    """

    alpha: float = 0.5
    label_size: float = 1.0
    labels: bool = True
    contours: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise InputError(f"alpha: expected 0..1, found {self.alpha}")
        if not _SMALLEST_LABELS <= self.label_size <= _LARGEST_LABELS:
            limits = f"{_SMALLEST_LABELS}..{_LARGEST_LABELS}"
            raise InputError(f"label size: expected {limits}, found {self.label_size}")


def paint_segments(image: np.ndarray, segments: Sequence[Segment], style: Style | None = None) -> np.ndarray:
    """Paint segments and their labels over an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        segments: later ones lie over earlier ones.
        style: how; by default half transparent, with labels.

    Returns:
        (h, w, 3) uint8 RGB, where (h, w) = (H, W) times ``canvas_scale(H, W)``.
    """
    style = Style() if style is None else style
    height, width = image.shape[:2]
    scale = canvas_scale(height, width)
    canvas = _enlarge(image, scale).astype(np.float32)
    thickness = max(1.5, 0.0028 * float(np.sqrt(canvas.shape[0] * canvas.shape[1])))
    visible = [segment for segment in segments if segment.mask.any()]
    for segment in visible:
        _paint_segment(canvas, segment, scale=scale, alpha=0.0 if style.contours else style.alpha, thickness=thickness)
    painted = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return draw_labels(painted, visible, scale=scale, size=style.label_size) if style.labels else painted


def canvas_scale(height: int, width: int) -> float:
    """Return the factor (>= 1) that enlarges the shorter side of a small image to MIN_CANVAS_SIDE."""
    return float(np.clip(MIN_CANVAS_SIDE / min(height, width), 1.0, MAX_ENLARGEMENT))


def _enlarge(image: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1.0:
        return image
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)


def _paint_segment(canvas: np.ndarray, segment: Segment, *, scale: float, alpha: float, thickness: float) -> None:
    top, bottom, left, right = _bounds(segment.mask, margin=int(np.ceil(thickness * 2 / scale)) + 2)
    crop = segment.mask[top:bottom, left:right].astype(np.float32)
    rows = slice(round(top * scale), round(bottom * scale))
    columns = slice(round(left * scale), round(right * scale))
    target = canvas[rows, columns]
    if scale != 1.0:
        size = (target.shape[1], target.shape[0])
        crop = np.asarray(cv2.resize(crop, size, interpolation=cv2.INTER_LINEAR), dtype=np.float32)
    distance = _signed_distance(crop, sigma=max(0.8, _EDGE_BLUR * scale))
    color = segment.color.astype(np.float32)
    _blend(target, color, np.clip(distance + 0.5, 0, 1) * alpha)
    line = thickness if segment.is_thing else 0.5 * thickness
    if segment.is_thing:
        _blend(target, color * 0.15, 0.6 * np.clip(0.5 + 0.75 * line - np.abs(distance), 0, 1))
    _blend(target, 0.35 * 255 + 0.65 * color, 0.95 * np.clip(0.5 + 0.5 * line - np.abs(distance - 0.5 * line), 0, 1))


def _bounds(mask: np.ndarray, *, margin: int) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (
        max(int(rows[0]) - margin, 0),
        min(int(rows[-1]) + 1 + margin, mask.shape[0]),
        max(int(columns[0]) - margin, 0),
        min(int(columns[-1]) + 1 + margin, mask.shape[1]),
    )


def _signed_distance(soft_mask: np.ndarray, *, sigma: float) -> np.ndarray:
    """Return the distance to the edge in canvas pixels, positive inside; saturated beyond about 3 sigma."""
    # The replicated border keeps outlines off the border of the image.
    blurred = cv2.GaussianBlur(soft_mask, (0, 0), sigmaX=sigma, borderType=cv2.BORDER_REPLICATE)
    return (sigma * ndtri(np.clip(blurred, 1e-5, 1 - 1e-5))).astype(np.float32)


def _blend(target: np.ndarray, color: np.ndarray, opacity: np.ndarray) -> None:
    target += opacity[..., None] * (color - target)


# Twenty colours of which any two differ by CIEDE2000 20 or more, and by 9 or more as deuteranopes and protanopes see
# them (Machado et al. 2009), the most different ones first; found by exchanging colours of a grid one by one.
_PALETTE = (
    (221, 85, 0),
    (102, 255, 255),
    (17, 0, 221),
    (34, 68, 34),
    (85, 255, 68),
    (170, 102, 153),
    (255, 187, 187),
    (0, 119, 119),
    (0, 187, 136),
    (102, 34, 85),
    (204, 187, 255),
    (238, 238, 170),
    (238, 153, 0),
    (102, 85, 0),
    (255, 85, 102),
    (0, 85, 136),
    (170, 51, 68),
    (136, 102, 255),
    (85, 170, 187),
    (119, 136, 68),
)
# For further classes, successive multiples of the golden angle fill the hue circle evenly. Classes whose hues come
# close are a Fibonacci number apart (13, 21, 34, 55), and four lightnesses tell those from each other.
GOLDEN_ANGLE = 137.50776
_LIGHTNESS = (66.0, 54.0, 76.0, 45.0)
_CHROMA = (55.0, 55.0, 45.0, 50.0)
# (hue in degrees, lightness) offsets of the first, second, ... instance of a class; the first keeps the class colour.
_INSTANCE_OFFSETS = ((0, 0), (24, 12), (-24, -12), (12, -18), (-12, 16), (36, -6), (-36, 8), (0, 22), (0, -24))


def class_color(class_id: int) -> np.ndarray:
    """Return the colour (3,) uint8 RGB of a class; depends on the class id alone."""
    if class_id < len(_PALETTE):
        return np.array(_PALETTE[class_id], dtype=np.uint8)
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
