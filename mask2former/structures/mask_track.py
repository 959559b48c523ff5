"""The masks of one instance through a video, in a few hundred bytes a frame.

Letters: N M instances, T frames, H W size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from mask2former.structures.masks import bitmasks_to_rles

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
