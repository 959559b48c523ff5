"""Short clips of moving shapes: they keep identity and style, turn, hide one another, enter and leave."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from mask2former.data.shapes.classes import ShapeClass
from mask2former.data.shapes.ground import SUPERSAMPLING, draw_ground
from mask2former.data.shapes.light import Array, Light, Size, develop, sample_camera, sample_exposure, sample_light
from mask2former.data.shapes.placement import Placed, clip_to_image, sample_thing, scale_of
from mask2former.data.shapes.scene import check_size, generator_of, paint_placed
from mask2former.data.shapes.things import Pose, Style, Thing, cover, sample_style

# Larger, fewer and less in one another's way than the things of images: what is new in videos is time.
_RADIUS = (13.0, 25.0)
_NUM_THINGS_ODDS = (0.35, 0.35, 0.3)  # of 2, 3, … things
_TYPICAL_COLOR_ODDS = 0.9
_MOTION_TRIES = 8
_MAX_CROWDING = 0.04  # of `_crowding`: a motion below is taken at once
_PASSING = 0.35  # odds that a thing crosses the picture rather than lingers in it
_TILT, _MAX_SPIN = 0.4, 0.06  # standard deviation of the rotation, as in images; radians a frame
_MAX_PAN = 0.12  # of the width, over the whole clip


@dataclass(frozen=True)
class Track:
    """A thing through a clip: ``id`` is its value in ``Video.ids``."""

    id: int
    category: ShapeClass


@dataclass(frozen=True)
class Video:
    """``frames`` (T, H, W, 3) uint8 RGB, ``ids`` (T, H, W) int32 (0 is the ground), ``tracks`` seen at least once."""

    frames: np.ndarray
    ids: np.ndarray
    tracks: tuple[Track, ...]


@dataclass(frozen=True)
class Motion:
    """Where a thing is at each time: at (x, y) at time ``when``, from there along a line with a sway."""

    when: float
    x: float
    y: float
    velocity: tuple[float, float]  # pixels a frame
    sway: float  # pixels
    angle: float
    spin: float  # radians a frame
    radius: float
    growth: float  # part of the radius a frame

    def pose(self, time: float) -> Pose:
        """Return the pose at a time in frames."""
        t = time - self.when
        vx, vy = self.velocity
        speed = math.hypot(vx, vy) + 1e-6
        sway = self.sway * math.sin(0.45 * t)
        return Pose(
            x=self.x + vx * t - vy / speed * sway,
            y=self.y + vy * t + vx / speed * sway,
            radius=self.radius * (1 + self.growth) ** t,
            angle=self.angle + self.spin * t,
        )


@dataclass(frozen=True)
class _Actor:
    thing: Thing
    style: Style
    motion: Motion


def draw_video(seed: int | np.random.Generator, size: Size = (128, 128), *, num_frames: int = 12) -> Video:
    """Draw the clip of a seed.

    Raises:
        DatasetError: a side is shorter than 32 pixels.
    """
    check_size(size)
    rng = generator_of(seed)
    light = sample_light(rng)
    pan = int(rng.uniform(0, _MAX_PAN) * size[1])
    ground = draw_ground(rng, (size[0], size[1] + pan), light).canvas
    count = 2 + int(rng.choice(len(_NUM_THINGS_ODDS), p=_NUM_THINGS_ODDS))
    backdrop = np.array(cv2.mean(ground)[:3], np.float32)
    actors: list[_Actor] = []
    for thing in (sample_thing(rng) for _ in range(count)):
        style = sample_style(rng, thing.category, backdrop, typical_color_odds=_TYPICAL_COLOR_ODDS)
        motion = _sample_motion(rng, size, num_frames=num_frames, others=[actor.motion for actor in actors])
        actors.append(_Actor(thing, style, motion))
    fine = (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING)
    exposure, camera = sample_exposure(rng, fine, light), sample_camera(rng)
    towards_right = rng.random() < 0.5
    frames, ids = [], []
    for time in range(num_frames):
        progress = time / max(num_frames - 1, 1)
        left = round((progress if towards_right else 1 - progress) * pan * SUPERSAMPLING)
        canvas = ground[:, left : left + fine[1]].copy()
        ids.append(_draw_actors(canvas, actors, time, size=size, light=light))
        frames.append(develop(rng, np.clip(canvas * exposure, 0, 1), camera, size))
    seen = set(np.unique(np.stack(ids)).tolist())
    tracks = [Track(i, actor.thing.category) for i, actor in enumerate(actors, start=1) if i in seen]
    return Video(np.stack(frames), np.stack(ids), tuple(tracks))


def _draw_actors(canvas: Array, actors: list[_Actor], time: int, *, size: Size, light: Light) -> np.ndarray:
    """Paint all things as they are at a time; returns the ids (H, W)."""
    ids = np.zeros(size, np.int32)
    for index, actor in enumerate(actors, start=1):
        pose = actor.motion.pose(time)
        placed = Placed(actor.thing, pose, cover(actor.thing, pose))
        paint_placed(canvas, placed, actor.style, light)
        rows, columns, mask = clip_to_image(placed.patch, size)
        ids[rows, columns][mask] = index
    return ids


def _sample_motion(rng: np.random.Generator, size: Size, *, num_frames: int, others: list[Motion]) -> Motion:
    """Return a motion that is not much in the way of others, or the least so of a few."""
    tried: list[tuple[float, Motion]] = []
    for _ in range(_MOTION_TRIES):
        motion = _draw_motion(rng, size, num_frames)
        tried.append((_crowding(motion, others, num_frames), motion))
        if tried[-1][0] <= _MAX_CROWDING:
            break
    return min(tried, key=lambda pair: pair[0])[1]


def _crowding(motion: Motion, others: list[Motion], num_frames: int) -> float:
    """Return how deep a thing is within others, as a part of both radii: the mean over time of the sum."""
    depths = 0.0
    for time in range(num_frames):
        pose = motion.pose(time)
        for other in (other.pose(time) for other in others):
            reach = pose.radius + other.radius
            depths += max(0.0, 1 - math.hypot(pose.x - other.x, pose.y - other.y) / reach)
    return depths / num_frames


def _draw_motion(rng: np.random.Generator, size: Size, num_frames: int) -> Motion:
    height, width = size
    scale = scale_of(size)
    passing = rng.random() < _PASSING
    # A passing thing crosses the picture within the clip, so that it is seen to enter or to leave.
    speed = rng.uniform(0.8, 1.6) * min(size) / num_frames if passing else rng.uniform(0.2, 2.5) * scale
    heading = rng.uniform(0, 2 * math.pi)
    margin = 0.2
    return Motion(
        when=rng.uniform(0, num_frames - 1),
        x=rng.uniform(margin, 1 - margin) * width,
        y=rng.uniform(margin, 1 - margin) * height,
        velocity=(speed * math.cos(heading), speed * math.sin(heading)),
        sway=rng.uniform(0, 4) * scale,
        angle=rng.normal(0, _TILT),
        spin=rng.uniform(-_MAX_SPIN, _MAX_SPIN),
        radius=rng.uniform(*_RADIUS) * scale,
        growth=rng.uniform(-0.015, 0.015),
    )
