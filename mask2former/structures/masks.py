"""Masks as bitmaps, polygons and run-length codes, convertible into each other, and the masks of a video instance.

Run-length codes and the rasterisation of polygons are pycocotools', as for the official COCO metrics.
Letters: N M instances, T frames, H W size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask

from mask2former.structures.boxes import Boxes


class BitMasks:
    """Masks (N, H, W) bool of the instances of one image."""

    def __init__(self, tensor: torch.Tensor | np.ndarray) -> None:
        masks = torch.as_tensor(tensor)
        if masks.ndim != 3:
            raise ValueError(f"masks must have shape (N, H, W), found {tuple(masks.shape)}")
        self.tensor = masks.bool()

    @classmethod
    def from_polygon_masks(cls, polygons: PolygonMasks, height: int, width: int) -> BitMasks:
        """Rasterise polygons at (height, width) pixels."""
        bitmaps = [polygons_to_bitmask(instance, height, width) for instance in polygons.polygons]
        return cls(np.stack(bitmaps) if bitmaps else np.zeros((0, height, width), dtype=bool))

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.tensor.shape[1], self.tensor.shape[2])

    @property
    def device(self) -> torch.device:
        """Where the bitmaps are."""
        return self.tensor.device

    def get_bounding_boxes(self) -> Boxes:
        """Return boxes around the masks; zeros for an empty one."""
        return Boxes(masks_to_boxes_xyxy(self.tensor))

    def nonempty(self) -> torch.Tensor:
        """Return which masks (N,) bool have a pixel."""
        return self.tensor.flatten(1).any(dim=1)

    def to(self, *args: Any, **kwargs: Any) -> BitMasks:
        """Return the same masks after ``Tensor.to``."""
        return BitMasks(self.tensor.to(*args, **kwargs))

    @classmethod
    def cat(cls, masks: Sequence[BitMasks]) -> BitMasks:
        """Return the masks of all parts, in order."""
        return cls(torch.cat([m.tensor for m in masks]))

    def __getitem__(self, item: int | slice | torch.Tensor) -> BitMasks:
        """Return the selected masks; an integer keeps the first axis."""
        return BitMasks(self.tensor[item].reshape(-1, *self.image_size))

    def __len__(self) -> int:
        return self.tensor.shape[0]


class PolygonMasks:
    """Masks of the instances of one image, each a list of polygons (x0, y0, x1, y1, …) in pixels."""

    def __init__(self, polygons: Sequence[Sequence[Sequence[float] | np.ndarray]]) -> None:
        self.polygons = [[np.asarray(p, dtype=np.float64).reshape(-1) for p in instance] for instance in polygons]

    def get_bounding_boxes(self) -> Boxes:
        """Return boxes around the polygons; zeros for an instance without one."""
        boxes = np.zeros((len(self.polygons), 4), dtype=np.float32)
        for box, instance in zip(boxes, self.polygons, strict=True):
            if instance:
                points = np.concatenate(instance).reshape(-1, 2)
                box[:] = [*points.min(axis=0), *points.max(axis=0)]
        return Boxes(torch.from_numpy(boxes))

    def nonempty(self) -> torch.Tensor:
        """Return which masks (N,) bool have a polygon."""
        return torch.tensor([bool(instance) for instance in self.polygons], dtype=torch.bool)

    def to(self, *args: Any, **kwargs: Any) -> PolygonMasks:
        """Return the masks themselves: polygons stay on the host."""
        return self

    @classmethod
    def cat(cls, masks: Sequence[PolygonMasks]) -> PolygonMasks:
        """Return the masks of all parts, in order."""
        return cls([instance for part in masks for instance in part.polygons])

    def __getitem__(self, item: int | slice | torch.Tensor) -> PolygonMasks:
        """Return the selected masks; an integer keeps the first axis."""
        if isinstance(item, int):
            return PolygonMasks([self.polygons[item]])
        if isinstance(item, slice):
            return PolygonMasks(self.polygons[item])
        indices = item.nonzero().flatten() if item.dtype == torch.bool else item
        return PolygonMasks([self.polygons[i] for i in indices.tolist()])

    def __len__(self) -> int:
        return len(self.polygons)


def polygons_to_bitmask(polygons: Sequence[Sequence[float] | np.ndarray], height: int, width: int) -> np.ndarray:
    """Return the union (H, W) bool of polygons (x0, y0, x1, y1, …) in pixels; no polygon gives an empty mask."""
    mask = np.zeros((height, width), dtype=bool)
    draw_polygons(polygons, mask)
    return mask


def draw_polygons(polygons: Sequence[Sequence[float] | np.ndarray], mask: np.ndarray) -> None:
    """Draw polygons (x0, y0, x1, y1, …) in pixels into an empty ``mask`` (H, W) bool."""
    height, width = mask.shape
    if len(polygons) == 0 or mask.size == 0:
        return
    points = [np.asarray(polygon, dtype=np.float64) for polygon in polygons]
    # Only the columns from the first pixel to the last are decoded. They change nothing about each other.
    width = int(min(max(max(p[::2].max() for p in points) + 3, 1), width))
    rles = coco_mask.frPyObjects(points, height, width)
    rle = rles[0] if len(rles) == 1 else coco_mask.merge(rles)
    num_before, num_characters = _first_run(rle["counts"])
    left = num_before // height
    if left < width:
        rest = coco_mask.frPyObjects({"size": [num_before % height, 1], "counts": [num_before % height]}, 1, 1)
        rle = {"size": [height, width - left], "counts": rest["counts"] + rle["counts"][num_characters:]}
        # Decoded columns come one after the other; OpenCV turns them into rows ten times faster than NumPy.
        cv2.transpose(coco_mask.decode(rle).T, dst=mask[:, left:width].view(np.uint8))


def _first_run(counts: bytes) -> tuple[int, int]:
    """Return the length of the first run of a compressed run-length code, and the number of its characters."""
    # Five bits a character, lowest first; the sixth bit says that more follow. A first run is never negative.
    length = 0
    for place, character in enumerate(counts):
        length |= ((character - 48) & 31) << (5 * place)
        if not (character - 48) & 32:
            return length, place + 1
    raise AssertionError("a run-length code ends within its first run")


def bitmasks_to_rles(masks: torch.Tensor | np.ndarray) -> list[dict[str, Any]]:
    """Return compressed run-length codes, counts as text ready for JSON, of masks (N, H, W) bool."""
    array = masks.cpu().numpy() if isinstance(masks, torch.Tensor) else masks
    # One transposed copy for all: the encoder wants (H, W, N) in Fortran order, which is (N, W, H) in C order.
    encoded = coco_mask.encode(np.ascontiguousarray(array.transpose(0, 2, 1)).astype(np.uint8, copy=False).T)
    return [{"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")} for rle in encoded]


def mask_to_box_xywh(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return left, top, width and height of the tightest box around a mask (H, W) bool that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    y0, y1, x0, x1 = int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])
    return x0, y0, x1 - x0 + 1, y1 - y0 + 1


def masks_to_boxes_xyxy(masks: torch.Tensor) -> torch.Tensor:
    """Return boxes (N, 4) float32 around masks (N, H, W) bool, x1 and y1 exclusive; zeros for an empty mask."""
    num_masks, height, width = masks.shape
    if num_masks == 0 or height == 0 or width == 0:
        return torch.zeros((num_masks, 4), dtype=torch.float32, device=masks.device)
    bytes_ = masks.to(torch.bool).view(torch.uint8)  # reducing bytes is 15 times faster than reducing bools
    rows, columns = bytes_.amax(dim=2), bytes_.amax(dim=1)  # (N, H), (N, W)
    x0, y0 = columns.argmax(dim=1), rows.argmax(dim=1)
    x1, y1 = width - columns.flip(1).argmax(dim=1), height - rows.flip(1).argmax(dim=1)
    boxes_xyxy = torch.stack([x0, y0, x1, y1], dim=1).float()
    return boxes_xyxy * rows.any(dim=1, keepdim=True)


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


Rle = dict[str, Any]


class MaskTrack:
    """Masks (T, H, W) bool, kept as one run-length code a frame and decoded one frame at a time."""

    def __init__(self, rles: Mapping[int, Rle], *, num_frames: int, image_size: tuple[int, int]) -> None:
        """``rles``: compressed codes by frame number; frames that are not there are empty."""
        self._empty = bitmasks_to_rles(np.zeros((1, *image_size), dtype=bool))[0]
        self._rles = dict(rles)
        self.shape = (num_frames, *image_size)

    def __len__(self) -> int:
        """Return the number of frames."""
        return self.shape[0]

    def __getitem__(self, frame: int) -> torch.Tensor:
        """Return the mask (H, W) bool of a frame."""
        if not -len(self) <= frame < len(self):
            raise IndexError(f"frame {frame} of {len(self)}")
        rle = self._rles.get(frame % len(self))
        if rle is None:
            return torch.zeros(self.shape[1:], dtype=torch.bool)
        return torch.from_numpy(coco_mask.decode(rle)).bool()

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[frame] for frame in range(len(self)))

    def to_rles(self) -> list[Rle]:
        """Return a compressed run-length code for each frame, counts as text ready for JSON."""
        return [self._rles.get(frame, self._empty) for frame in range(len(self))]

    def to_tensor(self) -> torch.Tensor:
        """Return all masks at once, (T, H, W) bool."""
        return torch.stack(list(self)) if len(self) else torch.zeros(self.shape, dtype=torch.bool)


def track_ious(first: Sequence[Sequence[Rle]], second: Sequence[Sequence[Rle]]) -> tuple[np.ndarray, np.ndarray]:
    """Return intersection and union (N, M) float64, in pixels, of masks over the same frames.

    Each argument is a list (N or M) of lists of T run-length codes.
    """
    intersections, unions = np.zeros((len(first), len(second))), np.zeros((len(first), len(second)))
    if not intersections.size:
        return intersections, unions
    for ours, theirs in zip(zip(*first, strict=True), zip(*second, strict=True), strict=True):
        ious = np.asarray(coco_mask.iou(list(ours), list(theirs), [False] * len(theirs)))  # (N, M)
        areas = coco_mask.area(list(ours)).astype(float)[:, None] + coco_mask.area(list(theirs)).astype(float)
        intersection = ious * areas / (1 + ious)
        intersections += intersection
        unions += areas - intersection
    return intersections, unions
