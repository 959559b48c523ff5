"""Label the segments of a picture: choose for each label the place that hides least, then draw it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

# A label goes inside its segment when it covers at most this part of the segment's largest piece.
MAX_COVERED_PART = 0.3
_MAX_PLACES_INSIDE = 12


@dataclass(frozen=True)
class Segment:
    """One thing to paint.

    mask: (H, W) bool; color: (3,) uint8 RGB; label: text, "" for none; is_thing: outlined strongly and named first.
    """

    mask: np.ndarray
    color: np.ndarray
    label: str
    is_thing: bool


@dataclass(frozen=True)
class _Piece:
    """The largest connected part of a segment, in canvas pixels."""

    area: float
    box_xyxy: tuple[float, float, float, float]
    centers: list[tuple[float, float]]  # places inside, the one farthest from the edge first


def draw_labels(canvas: np.ndarray, segments: Sequence[Segment], *, scale: float) -> np.ndarray:
    """Return a copy of the canvas with the label of every segment.

    Things are placed first and small ones before large ones, because they have the fewest places to choose from.

    Args:
        canvas: (h, w, 3) uint8 RGB.
        segments: what is labelled.
        scale: canvas pixels per mask pixel.
    """
    named = [segment for segment in segments if segment.label]
    if not named:
        return canvas
    font_size = max(14, round(0.024 * float(np.sqrt(canvas.shape[0] * canvas.shape[1]))))
    font = ImageFont.load_default(size=font_size)
    pieces = [_largest_piece(segment.mask, scale=scale) for segment in named]
    order = sorted(range(len(named)), key=lambda i: (not named[i].is_thing, pieces[i].area))
    placer = _Placer(canvas.shape[0], canvas.shape[1], _thing_area_table(named), scale=scale)
    boxes = {index: placer.place(pieces[index], _label_size(named[index].label, font, font_size)) for index in order}
    canvas = canvas.copy()
    for index, box in boxes.items():
        if not _lies_on(box, named[index].mask, scale=scale):
            _draw_leader(canvas, named[index], box, pieces[index].centers[0])
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture, "RGBA")
    for index, box in boxes.items():
        _draw_label(draw, named[index], box, font)
    return np.asarray(picture)


def _lies_on(box: tuple[float, float, float, float], mask: np.ndarray, *, scale: float) -> bool:
    """Return whether the middle of the label lies on the mask (H, W)."""
    x, y = int((box[0] + box[2]) / 2 / scale), int((box[1] + box[3]) / 2 / scale)
    return bool(mask[min(y, mask.shape[0] - 1), min(x, mask.shape[1] - 1)])


def _draw_leader(
    canvas: np.ndarray, segment: Segment, box: tuple[float, float, float, float], center: tuple[float, float]
) -> None:
    """Draw a line from a label that lies outside its segment to the inside of the segment."""
    start = (float(np.clip(center[0], box[0], box[2])), float(np.clip(center[1], box[1], box[3])))
    if float(np.hypot(start[0] - center[0], start[1] - center[1])) < 0.5 * (box[3] - box[1]):
        return
    color = tuple(int(channel) for channel in segment.color)
    ends = [(round(x), round(y)) for x, y in (start, center)]
    for line_color, thickness in ((_dark(color), 3), (color, 1)):
        cv2.line(canvas, ends[0], ends[1], line_color, thickness, cv2.LINE_AA)
        cv2.circle(canvas, ends[1], thickness + 1, line_color, -1, cv2.LINE_AA)


def _dark(color: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(channel * 0.3) for channel in color)


def _label_size(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, font_size: int) -> tuple[float, float]:
    return font.getlength(text) + 0.6 * font_size, 1.35 * font_size


def _draw_label(
    draw: ImageDraw.ImageDraw,
    segment: Segment,
    box: tuple[float, float, float, float],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    color = tuple(int(channel) for channel in segment.color)
    # White on a dark tone of the segment's own colour reads well over any picture.
    draw.rounded_rectangle(
        box, radius=0.2 * (box[3] - box[1]), fill=(*_dark(color), 215), outline=(*color, 255), width=1
    )
    center = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    draw.text(center, segment.label, fill=(255, 255, 255, 255), font=font, anchor="mm")


def _largest_piece(mask: np.ndarray, *, scale: float) -> _Piece:
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    part = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    left, top, width, height, area = (int(value) for value in stats[part])
    crop = (parts[top : top + height, left : left + width] == part).astype(np.uint8)
    centers = [((left + x + 0.5) * scale, (top + y + 0.5) * scale) for x, y in _interior_points(crop)]
    box = (left * scale, top * scale, (left + width) * scale, (top + height) * scale)
    return _Piece(area=area * scale**2, box_xyxy=box, centers=centers)


def _interior_points(crop: np.ndarray) -> list[tuple[int, int]]:
    """Return points (x, y) far from the edge and from each other, best first; crop: (H, W) uint8."""
    # The ring of zeros makes the border of the image an edge.
    distance = cv2.distanceTransform(np.pad(crop, 1), cv2.DIST_L2, 3)[1:-1, 1:-1].copy()
    # Among places equally far from the edge, as in a broad band, the one in the middle.
    off_x, off_y = (np.abs(np.linspace(-1, 1, length)) for length in (crop.shape[1], crop.shape[0]))
    distance *= (1 - 0.1 * off_x[None, :] - 0.1 * off_y[:, None]).astype(np.float32)
    points = []
    for _ in range(_MAX_PLACES_INSIDE):
        y, x = (int(value) for value in np.unravel_index(int(np.argmax(distance)), distance.shape))
        radius = float(distance[y, x])
        if radius <= 0:
            break
        points.append((x, y))
        cv2.circle(distance, (x, y), max(round(radius), 1), 0, thickness=-1)
    return points


def _thing_area_table(segments: Sequence[Segment]) -> np.ndarray:
    """Return the summed-area table (H + 1, W + 1) of the pixels that belong to things."""
    things = np.zeros(segments[0].mask.shape, dtype=np.uint8)
    for segment in segments:
        if segment.is_thing:
            things |= segment.mask.astype(np.uint8)
    return cv2.integral(things)


class _Placer:
    """Choose for each label in turn the place that hides least: labels above all, then things, near first."""

    def __init__(self, height: int, width: int, thing_table: np.ndarray, *, scale: float) -> None:
        self.height, self.width, self.scale = height, width, scale
        self.thing_table = thing_table
        self.placed = np.zeros((0, 4))

    def place(self, piece: _Piece, size: tuple[float, float]) -> tuple[float, float, float, float]:
        """Return the box (x0, y0, x1, y1) in canvas pixels of a label of ``size`` (width, height).

        It is inside the canvas if it fits.
        """
        inside_allowed = size[0] * size[1] <= MAX_COVERED_PART * piece.area
        inside = [(center, 0.0) for center in piece.centers]
        outside = [(center, 0.3) for center in self._around(piece.box_xyxy, size)]
        candidates = [*inside, *outside] if inside_allowed else [*outside, (piece.centers[0], 1.5)]
        best, best_cost = (0.0, 0.0, size[0], size[1]), float("inf")
        for rank, (center, penalty) in enumerate(candidates):
            box = self._box(center, size)
            cost = penalty + 0.02 * rank + self._hidden(box, own_inside=inside_allowed and rank < len(inside))
            if cost < best_cost:
                best, best_cost = box, cost
        self.placed = np.concatenate([self.placed, np.array([best])])
        return best

    def _around(self, box: tuple[float, float, float, float], size: tuple[float, float]) -> list[tuple[float, float]]:
        """Return centres of labels that touch the box from outside: above, below, beside, at corners, then farther."""
        x0, y0, x1, y1 = box
        middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
        places = []
        for ring in range(3):
            gap = 2 + ring * size[1]
            above, below = y0 - gap - size[1] / 2, y1 + gap + size[1] / 2
            left, right = x0 - gap - size[0] / 2, x1 + gap + size[0] / 2
            places += [(middle_x, above), (middle_x, below), (right, middle_y), (left, middle_y)]
            places += [(right, above), (left, above), (right, below), (left, below)]
        return places

    def _box(self, center: tuple[float, float], size: tuple[float, float]) -> tuple[float, float, float, float]:
        x0 = float(np.clip(center[0] - size[0] / 2, 1, max(self.width - size[0] - 2, 1)))
        y0 = float(np.clip(center[1] - size[1] / 2, 1, max(self.height - size[1] - 2, 1)))
        return x0, y0, x0 + size[0], y0 + size[1]

    def _hidden(self, box: tuple[float, float, float, float], *, own_inside: bool) -> float:
        area = (box[2] - box[0]) * (box[3] - box[1])
        cost = 0.0
        if len(self.placed):
            overlap_w = np.minimum(self.placed[:, 2], box[2]) - np.maximum(self.placed[:, 0], box[0])
            overlap_h = np.minimum(self.placed[:, 3], box[3]) - np.maximum(self.placed[:, 1], box[1])
            cost += 20.0 * float((np.clip(overlap_w, 0, None) * np.clip(overlap_h, 0, None)).sum()) / area
        if not own_inside:
            x0, y0, x1, y1 = (int(value / self.scale) for value in box)
            y1, x1 = min(y1 + 1, self.thing_table.shape[0] - 1), min(x1 + 1, self.thing_table.shape[1] - 1)
            table = self.thing_table
            hidden = table[y1, x1] - table[y0, x1] - table[y1, x0] + table[y0, x0]
            cost += 1.5 * float(hidden) * self.scale**2 / area
        return cost
