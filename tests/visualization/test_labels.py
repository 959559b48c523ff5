from __future__ import annotations

import cv2
import numpy as np
import pytest

from mask2former.visualization import labels
from mask2former.visualization.labels import Segment


def make_segment(mask: np.ndarray, *, is_thing: bool = True, label: str = "thing 90%") -> Segment:
    return Segment(mask=mask, color=np.array([200, 80, 40], dtype=np.uint8), label=label, is_thing=is_thing)


def place_all(masks: list[np.ndarray], size: tuple[float, float]) -> list[tuple[float, float, float, float]]:
    segments = [make_segment(mask) for mask in masks]
    height, width = masks[0].shape
    table = labels._thing_area_table(segments, masks[0].shape)
    placer = labels._Placer(height, width, table, np.zeros_like(table), scale=1.0)
    boxes = [placer.place(labels._largest_piece(mask, scale=1.0), size) for mask in masks]
    return [box for box in boxes if box is not None]


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


def test_interior_points_of_a_ring_lie_on_the_ring() -> None:
    y, x = np.mgrid[:101, :101]
    radius = np.hypot(x - 50, y - 50)
    ring = ((radius < 50) & (radius > 30)).astype(np.uint8)
    points = labels._interior_points(ring)
    assert points
    assert all(ring[y, x] for x, y in points)


def test_largest_piece_ignores_the_small_part() -> None:
    mask = np.zeros((60, 60), dtype=bool)
    mask[5:8, 5:8] = True
    mask[20:55, 20:55] = True
    piece = labels._largest_piece(mask, scale=2.0)
    assert piece.box_xyxy == (40, 40, 110, 110)
    assert piece.area == 35 * 35 * 4
    assert all(40 < x < 110 and 40 < y < 110 for x, y in piece.centers)


def test_place_large_segment_gets_its_label_inside() -> None:
    mask = np.zeros((200, 200), dtype=bool)
    mask[50:150, 20:180] = True
    (box,) = place_all([mask], (60, 20))
    assert box[0] >= 20
    assert box[1] >= 50
    assert box[2] <= 180
    assert box[3] <= 150


def test_place_small_segment_is_not_hidden_by_its_label() -> None:
    mask = np.zeros((200, 200), dtype=bool)
    mask[100:110, 100:110] = True
    (box,) = place_all([mask], (60, 20))
    assert overlap(box, (100, 100, 110, 110)) == 0


def test_place_labels_of_neighbours_do_not_overlap() -> None:
    masks = []
    for row in range(4):
        for column in range(3):
            mask = np.zeros((400, 400), dtype=bool)
            mask[60 + 80 * row : 70 + 80 * row, 60 + 120 * column : 70 + 120 * column] = True
            masks.append(mask)
    boxes = place_all(masks, (80, 20))
    assert all(overlap(a, b) == 0 for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.parametrize("corner", [(0, 0), (0, 195), (195, 0), (195, 195)])
def test_place_stays_on_the_canvas(corner: tuple[int, int]) -> None:
    mask = np.zeros((200, 200), dtype=bool)
    mask[corner[0] : corner[0] + 5, corner[1] : corner[1] + 5] = True
    (box,) = place_all([mask], (70, 20))
    assert min(box) >= 0
    assert max(box) <= 200


def test_draw_labels_without_text_changes_nothing() -> None:
    canvas = np.full((64, 64, 3), 90, dtype=np.uint8)
    segment = make_segment(np.ones((64, 64), dtype=bool), label="")
    assert np.array_equal(labels.draw_labels(canvas, [segment], scale=1.0), canvas)


def test_draw_labels_text_contrasts_with_its_background() -> None:
    canvas = np.full((200, 300, 3), 230, dtype=np.uint8)
    drawn = labels.draw_labels(canvas, [make_segment(np.ones((200, 300), dtype=bool))], scale=1.0)
    changed = drawn[(drawn != 230).any(axis=2)].astype(int).mean(axis=1)
    assert changed.min() < 90
    assert changed.max() > 240


def test_draw_labels_leads_from_outside_to_a_small_segment() -> None:
    canvas = np.full((200, 300, 3), 230, dtype=np.uint8)
    mask = np.zeros((200, 300), dtype=bool)
    mask[80:120, 140:160] = True
    drawn = labels.draw_labels(canvas, [make_segment(mask)], scale=1.0)
    assert (drawn[80:120, 140:160] != 230).any()


def _crowd(seed: int, *, size: tuple[int, int] = (240, 320), count: int = 40) -> list[Segment]:
    """Ellipses that lie over each other, each with what is visible of it."""
    rng = np.random.default_rng(seed)
    ids = np.zeros(size, np.int32)
    for index in range(count):
        center = (int(rng.integers(size[1])), int(rng.integers(size[0])))
        axes = (int(rng.integers(2, 24)), int(rng.integers(2, 24)))
        cv2.ellipse(ids, center, axes, int(rng.integers(180)), 0, 360, index + 1, -1)
    return [make_segment(ids == index, label=f"thing {index}%") for index in np.unique(ids) if index]


def _crossings(lines: list[tuple[np.ndarray, np.ndarray]]) -> int:
    def turn(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
        return float((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))

    pairs = [(one, other) for i, one in enumerate(lines) for other in lines[:i]]
    return sum(turn(a, b, c) * turn(a, b, d) < 0 and turn(c, d, a) * turn(c, d, b) < 0 for (a, b), (c, d) in pairs)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [0.5, 1.0, 1.6])
def test_labels_of_a_crowd_hide_no_small_thing_and_no_leader_crosses_another(seed: int, size: float) -> None:
    segments, scale = _crowd(seed), 2.5
    pieces = [labels._largest_piece(segment.mask, scale=scale) for segment in segments]
    shape = (round(segments[0].mask.shape[0] * scale), round(segments[0].mask.shape[1] * scale), 3)
    boxes = labels._lay_out(shape, segments, pieces, scale=scale, size=size)
    assert len(boxes) > 0.7 * len(segments) / max(size, 1) ** 2
    found = [box for box, _ in boxes.values()]
    assert all(overlap(a, b) == 0 for i, a in enumerate(found) for b in found[:i])
    assert all(0 <= box[0] and 0 <= box[1] and box[2] <= shape[1] and box[3] <= shape[0] for box in found)
    for box in found:
        rows = slice(int(box[1] / scale), int(box[3] / scale) + 1)
        columns = slice(int(box[0] / scale), int(box[2] / scale) + 1)
        for segment, piece in zip(segments, pieces, strict=True):
            if (box[2] - box[0]) * (box[3] - box[1]) > 4 * piece.area:  # far too small to hold a label
                assert not segment.mask[rows, columns].any()
    leaders = []
    for index, (box, _) in boxes.items():
        end = np.array(pieces[index].centers[0])
        start = np.clip(end, box[:2], box[2:])
        if not labels._lies_on(box, segments[index].mask, scale=scale):
            leaders.append((start, end))
    assert len(leaders) > 5
    assert _crossings(leaders) == 0


def test_text_follows_the_sizes_of_picture_and_segment() -> None:
    heights = [
        labels._text_height(shape, area, size=1.0) for shape in ((600, 800), (3000, 4000)) for area in (100, 1e5)
    ]
    small_on_small, large_on_small, small_on_large, large_on_large = heights
    assert small_on_small < large_on_small
    assert small_on_large < large_on_large
    assert 2 * small_on_small < small_on_large
    assert labels._text_height((600, 800), 1e5, size=2.0) == pytest.approx(2 * large_on_small, abs=1)
