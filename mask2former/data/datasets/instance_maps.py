"""Boxes, areas and run-length codes of all ids of an instance map, in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from scipy import ndimage


@dataclass(frozen=True)
class MapSegment:
    """The pixels of an id: ``box`` is (left, top, width, height) in pixels, ``area`` in pixels."""

    id: int
    box: tuple[int, int, int, int]
    area: int
    mask: np.ndarray
    """(height, width) bool, inside the box."""

    def to_rle(self, size: tuple[int, int]) -> dict[str, Any]:
        """Return COCO's compressed run-length code in an image of ``size`` (height, width)."""
        left, top, width, height = self.box
        # Columns are scanned one after the other, and only those of the box hold something.
        columns = np.zeros((width, size[0]), dtype=np.int8)
        columns[:, top : top + height] = self.mask.T
        edges = np.flatnonzero(np.diff(columns.reshape(-1), prepend=0, append=0)) + left * size[0]
        counts = np.diff(edges, prepend=0, append=size[0] * size[1])
        if counts[-1] == 0:
            counts = counts[:-1]
        rle = coco_mask.frPyObjects({"size": list(size), "counts": counts.tolist()}, *size)
        return {"size": list(size), "counts": rle["counts"].decode("ascii")}


def segments_of(ids: np.ndarray) -> list[MapSegment]:
    """Return the segments of ``ids`` (H, W), integers of 0 or more, in ascending order of their ids."""
    areas = np.bincount(ids.reshape(-1))  # much cheaper than sorting, which np.unique does
    present = np.flatnonzero(areas)
    places = np.zeros(len(areas), dtype=np.int32)
    places[present] = np.arange(1, len(present) + 1)
    segments = []
    for value, box in zip(present.tolist(), ndimage.find_objects(places[ids]), strict=True):
        rows, columns = box
        segments.append(
            MapSegment(
                id=value,
                box=(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start),
                area=int(areas[value]),
                mask=ids[box] == value,
            )
        )
    return segments
