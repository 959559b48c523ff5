"""Where the things of a scene lie: chosen at random, refused where one would hide or be hidden too far."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mask2former.data.shapes.classes import class_named, thing_classes
from mask2former.data.shapes.light import Size
from mask2former.data.shapes.things import Patch, Pose, Thing, cover, sample_outline

REFERENCE_SIDE = 128  # sizes below are for an image whose shorter side has this many pixels
MIN_VISIBLE_PIXELS = 30
MIN_VISIBLE_PART = 0.25
_MIN_PART_IN_PICTURE = 0.6
_RADIUS = (9.5, 31.0)
_CROWD_RADIUS = (6.0, 8.5)
_NUM_THINGS_ODDS = (0.1, 0.17, 0.2, 0.18, 0.14, 0.1, 0.07, 0.04)  # of 1, 2, … things
_EMPTY, _CROWDED, _CROWD_UNCOUNTED = 0.06, 0.05, 0.4
_TILT = 0.4  # standard deviation of the rotation, in radians: most things stand more or less upright
_TRIES = 12


@dataclass(frozen=True)
class Placed:
    """A thing in its place. Things of one ``crowd`` (an index) are annotated together, as one crowd segment."""

    thing: Thing
    pose: Pose
    patch: Patch
    crowd: int | None = None


def scale_of(size: Size) -> float:
    """Return how much larger things are than in an image of the reference size."""
    return min(size) / REFERENCE_SIDE


def min_visible_pixels(size: Size) -> int:
    """Return the fewest visible pixels with which something can be recognised in an image of this size."""
    return max(8, round(MIN_VISIBLE_PIXELS * scale_of(size) ** 2))


def clip_to_image(patch: Patch, size: Size) -> tuple[slice, slice, np.ndarray]:
    """Return rows, columns and mask of the image pixels that a patch covers."""
    top, left, mask = patch.label_mask()
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = max(min(top + mask.shape[0], size[0]), y0), max(min(left + mask.shape[1], size[1]), x0)
    return slice(y0, y1), slice(x0, x1), mask[y0 - top : y1 - top, x0 - left : x1 - left]


class Stage:
    """The things placed so far, the later in front of the earlier, and who is visible where."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.placed: list[Placed] = []
        self.owner = np.full(size, -1, np.int32)  # index into `placed`, -1 where the ground shows
        self._needed: list[int] = []

    def try_place(self, thing: Thing, pose: Pose, *, crowd: int | None = None) -> bool:
        """Put a thing in front of all others unless it, or one of them, would show too little."""
        patch = cover(thing, pose)
        full_area = int(np.count_nonzero(patch.label_mask()[2]))
        rows, columns, mask = clip_to_image(patch, self.size)
        shown = int(np.count_nonzero(mask))
        needed = max(min_visible_pixels(self.size), math.ceil(MIN_VISIBLE_PART * full_area))
        if shown < max(needed, _MIN_PART_IN_PICTURE * full_area):
            return False
        owner = self.owner.copy()
        owner[rows, columns][mask] = len(self.placed)
        visible = np.bincount(owner.ravel() + 1, minlength=len(self.placed) + 2)[1:-1]
        if np.any(visible < self._needed):
            return False
        self.owner = owner
        self.placed.append(Placed(thing, pose, patch, crowd))
        self._needed.append(needed)
        return True


def sample_thing(rng: np.random.Generator, name: str | None = None) -> Thing:
    """Return a thing of the class ``name``, or of any class."""
    classes = thing_classes()
    category = classes[rng.integers(len(classes))] if name is None else class_named(name)
    return Thing(category, sample_outline(rng, category.name))


def place_things(rng: np.random.Generator, size: Size) -> Stage:
    """Place nothing, a few things of all sizes, or a crowd of small ones with perhaps a few others."""
    stage, kind = Stage(size), rng.random()
    if kind < _EMPTY:
        return stage
    if kind < _EMPTY + _CROWDED:
        _place_crowd(rng, stage)
        count = int(rng.integers(0, 3))
    else:
        count = 1 + int(rng.choice(len(_NUM_THINGS_ODDS), p=_NUM_THINGS_ODDS))
    crowding = (4 / max(count, 4)) ** 0.4  # many things are smaller things
    for _ in range(count):
        thing = sample_thing(rng)
        for _ in range(_TRIES):
            if stage.try_place(thing, _sample_pose(rng, stage, crowding)):
                break
    return stage


def _sample_pose(rng: np.random.Generator, stage: Stage, crowding: float) -> Pose:
    height, width = stage.size
    low, high = (math.log(r * scale_of(stage.size)) for r in _RADIUS)
    radius = max(math.exp(rng.uniform(low, high)) * crowding, math.exp(low))
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    if stage.placed and rng.random() < 0.3:  # beside another, so that they overlap
        other = stage.placed[rng.integers(len(stage.placed))].pose
        angle, distance = rng.uniform(0, 2 * math.pi), rng.uniform(0.5, 1.0) * (radius + other.radius)
        x, y = other.x + distance * math.cos(angle), other.y + distance * math.sin(angle)
    return Pose(x, y, radius, rng.normal(0, _TILT))


def _place_crowd(rng: np.random.Generator, stage: Stage) -> None:
    """Place small things of one class close together; some crowds are too many to count (``crowd`` is set)."""
    height, width = stage.size
    scale = scale_of(stage.size)
    name = sample_thing(rng).category.name
    crowd = 0 if rng.random() < _CROWD_UNCOUNTED else None
    centre = np.array([rng.uniform(0.3, 0.7) * width, rng.uniform(0.3, 0.7) * height])
    spread = np.array([rng.uniform(0.17, 0.28) * width, rng.uniform(0.13, 0.22) * height])
    radius = rng.uniform(*_CROWD_RADIUS) * scale
    for _ in range(int(rng.integers(10, 20))):
        x, y = centre + np.clip(rng.normal(size=2), -1.7, 1.7) * spread
        pose = Pose(float(x), float(y), radius * rng.uniform(0.9, 1.15), rng.uniform(0, 2 * math.pi))
        stage.try_place(sample_thing(rng, name), pose, crowd=crowd)
