"""One picture with its complete annotation: the core of the shapes data set, without files."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from mask2former.data.shapes.classes import ShapeClass, class_named
from mask2former.data.shapes.ground import Ground, draw_ground
from mask2former.data.shapes.light import Array, Light, Size, develop, sample_camera, sample_exposure, sample_light
from mask2former.data.shapes.placement import Placed, Stage, min_visible_pixels, place_things
from mask2former.data.shapes.things import Patch, Style, cast_shadow, paint, sample_style
from mask2former.errors import DatasetError
from mask2former.structures import mask_to_box_xywh

MIN_SIDE = 32
_COLOR_JITTER = 26


@dataclass(frozen=True)
class Segment:
    """A segment of a scene.

    ``id`` is its value in ``Scene.ids``, ``bbox_xywh`` whole pixels, ``area`` a count of pixels.
    """

    id: int
    category: ShapeClass
    iscrowd: bool
    area: int
    bbox_xywh: tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """``image`` (H, W, 3) uint8 RGB, ``ids`` (H, W) int32 (0 is void), and ``segments``, one for each id."""

    image: np.ndarray
    ids: np.ndarray
    segments: tuple[Segment, ...]

    def semantic(self, ignore_label: int = 255) -> np.ndarray:
        """(H, W) uint8 contiguous class ids, ``ignore_label`` where void."""
        labels = np.full(self.ids.shape, ignore_label, np.uint8)
        for segment in self.segments:
            labels[self.ids == segment.id] = segment.category.contiguous_id
        return labels


def generator_of(seed: int | np.random.Generator) -> np.random.Generator:
    """Return a generator of random numbers from a seed; a generator is returned as it is."""
    return seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)


def check_size(size: Size) -> None:
    """Raise DatasetError for a picture too small to hold shapes that can be told apart."""
    if min(size) < MIN_SIDE:
        raise DatasetError(f"size (height, width): expected at least {MIN_SIDE} x {MIN_SIDE} pixels, found {size}")


def draw_scene(seed: int | np.random.Generator, size: Size = (128, 128)) -> Scene:
    """Draw the scene of a seed: the same seed and size give the same scene.

    Every thing shows at least a quarter of itself and enough pixels to be recognised.

    Raises:
        DatasetError: a side is shorter than 32 pixels.
    """
    check_size(size)
    rng = generator_of(seed)
    light = sample_light(rng)
    ground = draw_ground(rng, size, light)
    stage = place_things(rng, size)
    canvas = ground.canvas
    for placed in stage.placed:
        style = sample_style(rng, placed.thing.category, backdrop(canvas, placed.patch))
        paint_placed(canvas, placed, style, light)
    canvas *= sample_exposure(rng, canvas.shape[:2], light)
    image = develop(rng, np.clip(canvas, 0, 1), sample_camera(rng), size)
    return Scene(image, *_label(rng, ground, stage))


def paint_placed(canvas: Array, placed: Placed, style: Style, light: Light) -> None:
    """Paint a thing and its shadow on a canvas, in place."""
    cast_shadow(canvas, placed.patch, radius=placed.pose.radius, light=light)
    paint(canvas, placed.patch, placed.pose, style=style, light=light)


def backdrop(canvas: Array, patch: Patch) -> Array:
    """Return the mean colour (3,) of the canvas under a patch."""
    height, width = patch.coverage.shape
    rows = slice(max(patch.top, 0), max(patch.top + height, 1))
    columns = slice(max(patch.left, 0), max(patch.left + width, 1))
    return np.array(cv2.mean(canvas[rows, columns])[:3], np.float32)


def _label(rng: np.random.Generator, ground: Ground, stage: Stage) -> tuple[np.ndarray, tuple[Segment, ...]]:
    ids = np.zeros(stage.size, np.int32)
    segments: list[Segment] = []
    parts: list[tuple[ShapeClass, np.ndarray, bool]] = []
    shown = stage.owner < 0
    for index, name in enumerate(ground.names):
        mask = shown & (ground.labels == index)
        # A few pixels of ground between things are void: nobody could tell what they are.
        if np.count_nonzero(mask) >= min_visible_pixels(stage.size):
            parts.append((class_named(name), mask, False))
    crowd = [i for i, placed in enumerate(stage.placed) if placed.crowd is not None]
    if crowd:
        parts.append((stage.placed[crowd[0]].thing.category, np.isin(stage.owner, crowd), True))
    parts += [
        (placed.thing.category, stage.owner == i, False) for i, placed in enumerate(stage.placed) if i not in crowd
    ]
    for category, mask, iscrowd in parts:
        segment_id = _sample_id(rng, category, taken={segment.id for segment in segments})
        ids[mask] = segment_id
        segments.append(Segment(segment_id, category, iscrowd, int(np.count_nonzero(mask)), mask_to_box_xywh(mask)))
    return ids, tuple(segments)


def _sample_id(rng: np.random.Generator, category: ShapeClass, taken: set[int]) -> int:
    """Return an id whose colour in the panoptic PNG is close to the class's own, as in the PNGs of COCO."""
    while True:
        jitter = rng.integers(-_COLOR_JITTER, _COLOR_JITTER + 1, 3) if category.isthing else np.zeros(3, int)
        r, g, b = np.clip(np.array(category.color) + jitter, 1, 255).tolist()
        segment_id = r + 256 * g + 65536 * b
        if segment_id not in taken:
            return int(segment_id)
