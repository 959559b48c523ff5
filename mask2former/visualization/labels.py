"""Label the segments of a picture: choose for each label the place that hides least, then draw it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

# A label goes inside its segment when it covers at most this part of the segment's largest piece.
MAX_COVERED_PART = 0.3
_MAX_PLACES_INSIDE = 12
_NUM_RINGS = 6  # of places around a segment, each a label's height farther
_TEXT_PART = 0.024  # of the canvas, the geometric mean of its sides: height of text
_MIN_TEXT, _MIN_LABEL = 14, 9  # canvas pixels, of the usual text and of what is made smaller to find a place
_TYPICAL_PART = 0.02  # of the canvas: segments of this area get the usual text, smaller ones a smaller one
_TRIALS = ((1.0, False), (0.8, False), (0.65, False), (0.8, True), (0.65, True))  # size of text, and whether far away
_MAX_LEADER = 0.2  # of the canvas, the geometric mean of its sides

_Point = tuple[float, float]
_Box = tuple[float, float, float, float]
_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


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


def draw_labels(canvas: np.ndarray, segments: Sequence[Segment], *, scale: float, size: float = 1.0) -> np.ndarray:
    """Return a copy of the canvas with the labels of the segments; one that would hide a small thing is left out.

    Things are placed first and small ones before large ones, because they have the fewest places to choose from.

    Args:
        canvas: (h, w, 3) uint8 RGB.
        segments: what is labelled.
        scale: canvas pixels per mask pixel.
        size: of the text, 1 is the usual one, which follows the sizes of canvas and segment.
    """
    named = [segment for segment in segments if segment.label]
    if not named:
        return canvas
    pieces = [_largest_piece(segment.mask, scale=scale) for segment in named]
    boxes = _lay_out(canvas.shape, named, pieces, scale=scale, size=size)
    canvas = canvas.copy()
    for index, (box, _) in boxes.items():
        if not _lies_on(box, named[index].mask, scale=scale):
            _draw_leader(canvas, named[index], box, pieces[index].centers[0])
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture, "RGBA")
    for index, (box, font) in boxes.items():
        _draw_label(draw, named[index], box, font)
    return np.asarray(picture)


def _lay_out(
    shape: tuple[int, ...], segments: Sequence[Segment], pieces: Sequence[_Piece], *, scale: float, size: float
) -> dict[int, tuple[_Box, _Font]]:
    """Return box and font of each label that has a place, by the number of its segment."""
    usual = [_text_height(shape, piece.area, size=size) for piece in pieces]
    small = [
        segment
        for segment, piece, height in zip(segments, pieces, usual, strict=True)
        if np.prod(_label_size(segment.label, _font(height), height)) > MAX_COVERED_PART * piece.area
    ]
    tables = [_thing_area_table(group, segments[0].mask.shape) for group in (segments, small)]
    placer, boxes = _Placer(shape[0], shape[1], *tables, scale=scale), {}
    for index in sorted(range(len(segments)), key=lambda i: (not segments[i].is_thing, pieces[i].area)):
        for factor, is_far in _TRIALS:
            font = _font(height := max(_MIN_LABEL, round(usual[index] * factor)))
            box = placer.place(pieces[index], _label_size(segments[index].label, font, height), is_far=is_far)
            if box is not None:
                boxes[index] = box, font
                break
    return boxes


def _text_height(canvas: tuple[int, ...], area: float, *, size: float) -> int:
    pixels = float(canvas[0] * canvas[1])
    usual = max(float(_MIN_TEXT), _TEXT_PART * pixels**0.5)
    return max(_MIN_LABEL, round(size * usual * float(np.clip((area / (_TYPICAL_PART * pixels)) ** 0.15, 0.75, 1.15))))


@functools.lru_cache(maxsize=64)
def _font(height: int) -> _Font:
    return ImageFont.load_default(size=height)


def _lies_on(box: _Box, mask: np.ndarray, *, scale: float) -> bool:
    """Return whether the middle of the label lies on the mask (H, W)."""
    x, y = int((box[0] + box[2]) / 2 / scale), int((box[1] + box[3]) / 2 / scale)
    return bool(mask[min(y, mask.shape[0] - 1), min(x, mask.shape[1] - 1)])


def _draw_leader(canvas: np.ndarray, segment: Segment, box: _Box, center: _Point) -> None:
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


def _label_size(text: str, font: _Font, font_size: int) -> tuple[float, float]:
    return font.getlength(text) + 0.6 * font_size, 1.35 * font_size


def _draw_label(
    draw: ImageDraw.ImageDraw,
    segment: Segment,
    box: _Box,
    font: _Font,
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


def _thing_area_table(segments: Sequence[Segment], shape: tuple[int, ...]) -> np.ndarray:
    """Return the summed-area table (H + 1, W + 1) of the pixels (H, W) that belong to things."""
    things = np.zeros(shape, dtype=np.uint8)
    for segment in segments:
        if segment.is_thing:
            things |= segment.mask.astype(np.uint8)
    return cv2.integral(things)


class _Placer:
    """Choose for each label in turn the place that hides least, near first.

    A label never lies on another one or on a small thing, and its leader crosses no other leader and no label.
    """

    def __init__(self, height: int, width: int, things: np.ndarray, small: np.ndarray, *, scale: float) -> None:
        """``things``, ``small``: summed-area tables of the pixels of things, and of those too small for labels."""
        self.height, self.width, self.scale = height, width, scale
        self.things, self.small = things, small
        self.placed, self.leaders = np.zeros((0, 4)), np.zeros((0, 2, 2))

    def place(self, piece: _Piece, size: tuple[float, float], *, is_far: bool = False) -> _Box | None:
        """Return the box (x0, y0, x1, y1) in canvas pixels of a label of ``size`` (width, height).

        It is inside the canvas if it fits; None if no place is free. ``is_far``: places all over the canvas rather than
        around the piece.
        """
        if is_far:
            far = np.asarray(self._everywhere(size))
            distances = np.hypot(*(far - piece.centers[0]).T)
            limit = _MAX_LEADER * (self.height * self.width) ** 0.5
            near = distances <= limit
            return self._choose(far[near], distances[near], piece, size, num_inside=0) if near.any() else None
        inside = piece.centers if size[0] * size[1] <= MAX_COVERED_PART * piece.area else []
        places = np.asarray([*inside, *self._around(piece.box_xyxy, size)])
        ranks = np.arange(len(places))
        penalties = 0.02 * ranks + np.where(ranks < len(inside), 0.0, 0.3)
        return self._choose(places, penalties, piece, size, num_inside=len(inside))

    def _choose(
        self,
        centers: np.ndarray,
        penalties: np.ndarray,
        piece: _Piece,
        size: tuple[float, float],
        num_inside: int,
    ) -> _Box | None:
        boxes = self._boxes(centers, size)
        is_inside = np.arange(len(boxes)) < num_inside
        leaders = np.where(is_inside[:, None, None], 0.0, _leaders(boxes, piece.centers[0]))
        placed = self.placed
        sides = np.minimum(boxes[:, None, 2:], placed[None, :, 2:]) - np.maximum(
            boxes[:, None, :2], placed[None, :, :2]
        )
        blocked = (sides > 0).all(axis=2).any(axis=1) | (self._count(self.small, boxes) > 0)
        blocked |= _cross(leaders, self.leaders).any(axis=1)
        for diagonal in (lambda corners: corners, lambda corners: corners[:, [2, 1, 0, 3]]):
            blocked |= _cross(leaders, diagonal(placed).reshape(-1, 2, 2)).any(axis=1)
            blocked |= _cross(diagonal(boxes).reshape(-1, 2, 2), self.leaders).any(axis=1)
        if blocked.all():
            return None
        hidden = np.where(is_inside, 0.0, self._count(self.things, boxes) * self.scale**2 / (size[0] * size[1]))
        best = int(np.argmin(np.where(blocked, np.inf, penalties + 1.5 * hidden)))
        self.placed = np.concatenate([placed, boxes[best : best + 1]])
        self.leaders = np.concatenate([self.leaders, leaders[best : best + 1]])
        x0, y0, x1, y1 = boxes[best].tolist()
        return x0, y0, x1, y1

    def _around(self, box: _Box, size: tuple[float, float]) -> list[_Point]:
        """Return centres of labels that touch the box from outside: above, below, beside, at corners, then farther."""
        x0, y0, x1, y1 = box
        middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
        places = []
        for ring in range(_NUM_RINGS):
            gap = 2 + ring * size[1]
            above, below = y0 - gap - size[1] / 2, y1 + gap + size[1] / 2
            left, right = x0 - gap - size[0] / 2, x1 + gap + size[0] / 2
            places += [(middle_x, above), (middle_x, below), (right, middle_y), (left, middle_y)]
            places += [(right, above), (left, above), (right, below), (left, below)]
        return places

    def _everywhere(self, size: tuple[float, float]) -> list[_Point]:
        """Return centres of labels side by side over the whole canvas."""
        columns = np.arange(size[0] / 2, max(self.width - size[0] / 2, size[0]), 0.5 * size[0])
        rows = np.arange(size[1] / 2, max(self.height - size[1] / 2, size[1]), size[1])
        return [(float(x), float(y)) for y in rows for x in columns]

    def _boxes(self, centers: np.ndarray, size: tuple[float, float]) -> np.ndarray:
        """Return boxes (M, 4) of labels around centres (M, 2), moved onto the canvas."""
        limits = np.maximum(np.array([self.width, self.height]) - size - 2, 1)
        corners = np.clip(centers - np.asarray(size) / 2, 1, limits)
        return np.concatenate([corners, corners + size], axis=1)

    def _count(self, table: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Return how many pixels that the table counts lie in each box."""
        starts, ends = (boxes[:, :2] / self.scale).astype(int), (boxes[:, 2:] / self.scale).astype(int) + 1
        (x0, y0), (x1, y1) = starts.T, np.minimum(ends, [table.shape[1] - 1, table.shape[0] - 1]).T
        return table[y1, x1] - table[y0, x1] - table[y1, x0] + table[y0, x0]


def _leaders(boxes: np.ndarray, end: _Point) -> np.ndarray:
    """Return lines (M, 2, 2) from the nearest point of each box (M, 4) to a point."""
    ends = np.broadcast_to(np.asarray(end, dtype=float), (len(boxes), 2))
    return np.stack([np.clip(ends, boxes[:, :2], boxes[:, 2:]), ends], axis=1)


def _cross(lines: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return whether each of M lines (M, 2, 2) crosses each of N others: (M, N) bool."""

    def side(start: np.ndarray, end: np.ndarray, point: np.ndarray) -> np.ndarray:
        (dx, dy), (px, py) = np.moveaxis(end - start, -1, 0), np.moveaxis(point - start, -1, 0)
        return dx * py - dy * px

    (a, b), (c, d) = np.moveaxis(lines[:, None], 2, 0), np.moveaxis(others[None], 2, 0)
    return (side(a, b, c) * side(a, b, d) < 0) & (side(c, d, a) * side(c, d, b) < 0)
