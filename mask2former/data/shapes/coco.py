"""Scenes and clips as entries of COCO panoptic, COCO instances and YouTube-VIS json files."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from mask2former.data.shapes.scene import Scene
from mask2former.data.shapes.video import Video
from mask2former.structures import bitmasks_to_rles, mask_to_box_xywh, polygons_to_bitmask

# One instance in this many is written as polygons (where they are exact), so that both forms occur.
_POLYGON_PERIOD = 8


def panoptic_entry(scene: Scene, image_id: int, file_name: str) -> dict[str, Any]:
    """Return an entry of ``annotations`` in a COCO panoptic file; ``file_name`` is that of the PNG."""
    return {
        "image_id": image_id,
        "file_name": file_name,
        "segments_info": [
            {
                "id": segment.id,
                "category_id": segment.category.category_id,
                "area": segment.area,
                "bbox": list(segment.bbox_xywh),
                "iscrowd": int(segment.iscrowd),
            }
            for segment in scene.segments
        ],
    }


def instance_entries(scene: Scene, image_id: int) -> list[dict[str, Any]]:
    """Return entries of ``annotations`` in a COCO instances file, one a thing segment, still without ``id``."""
    things = [segment for segment in scene.segments if segment.category.isthing]
    if not things:
        return []
    masks = np.stack([scene.ids == segment.id for segment in things])
    entries = []
    for index, (segment, mask, rle) in enumerate(zip(things, masks, bitmasks_to_rles(masks), strict=True)):
        wants_polygons = (image_id + index) % _POLYGON_PERIOD == 0 and not segment.iscrowd
        polygons = mask_to_polygons(mask) if wants_polygons else None
        entries.append(
            {
                "image_id": image_id,
                "category_id": segment.category.category_id,
                "iscrowd": int(segment.iscrowd),
                "area": segment.area,
                "bbox": list(segment.bbox_xywh),
                "segmentation": rle if polygons is None else polygons,
            }
        )
    return entries


def track_entries(video: Video, video_id: int) -> list[dict[str, Any]]:
    """Return entries of ``annotations`` in a YouTube-VIS file, still without ``id``.

    Null in frames where nothing shows.
    """
    num_frames, height, width = video.ids.shape
    entries = []
    for track in video.tracks:
        masks = video.ids == track.id
        seen = masks.any((1, 2)).tolist()
        entries.append(
            {
                "video_id": video_id,
                "category_id": track.category.category_id,
                "iscrowd": 0,
                "height": height,
                "width": width,
                "length": num_frames,
                "segmentations": [r if s else None for r, s in zip(bitmasks_to_rles(masks), seen, strict=True)],
                "bboxes": [list(mask_to_box_xywh(m)) if s else None for m, s in zip(masks, seen, strict=True)],
                "areas": [int(np.count_nonzero(m)) if s else None for m, s in zip(masks, seen, strict=True)],
            }
        )
    return entries


def mask_to_polygons(mask: np.ndarray) -> list[list[float]] | None:
    """Return polygons along the pixel edges of a mask (H, W) bool; None if they would not give the same mask."""
    # In a doubled mask a contour runs through pixel 2x on a left edge and 2x + 1 on a right one: half of that,
    # rounded up, is the edge itself.
    doubled = np.repeat(np.repeat(mask.astype(np.uint8), 2, 0), 2, 1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = [_without_repeats((contour.reshape(-1, 2) + 1) // 2) for contour in contours]
    flat = [polygon.ravel().astype(float).tolist() for polygon in polygons if len(polygon) >= 3]
    exact = bool(flat) and np.array_equal(polygons_to_bitmask(flat, *mask.shape), mask)
    return flat if exact else None


def _without_repeats(points: np.ndarray) -> np.ndarray:
    """Return closed polygon (N, 2) of whole steps without repeated points and points within straight lines."""
    points = points[np.any(points != np.roll(points, 1, 0), 1)]
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    return points[np.any(before != after, 1)]
