"""Average precision of instances in videos: COCO's, with the overlap of masks over space and time.

Yang et al., "Video Instance Segmentation", ICCV 2019, section 3. A video's mask is that of one picture that shows its
frames side by side: its IoU with another is the sum of all intersections over the sum of all unions.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mask2former.errors import InputError
from mask2former.evaluation.average_precision import AveragePrecision, mean_percent, summarise_precision
from mask2former.structures.segmentations import run_lengths

Rle = Mapping[str, Any]

MAX_DETECTIONS = (1, 10, 100)  # by category and video
# Of the mean area over the frames that show the object, in pixels: larger than COCO's of single images.
AREA_RANGES = ((0, 1e5**2), (0, 128**2), (128**2, 256**2), (256**2, 1e5**2))
_ALL = 0  # of AREA_RANGES
_MAX_PIXELS = 2**32 - 1  # what pycocotools counts to


def compute_video_average_precision(
    tracks: Sequence[Mapping[str, Any]],
    detections: Sequence[Mapping[str, Any]],
    *,
    video_ids: Sequence[Any],
    category_ids: Sequence[int],
) -> AveragePrecision:
    """Return AP, AR1 and AR10 of ``detections`` against ``tracks``, both as ``joined`` gives them.

    Every one has ``video_id``, ``category_id``, ``mask`` (the code of ``join_frames``) and ``area``; detections have a
    ``score``, tracks ``iscrowd``.
    """
    evaluator = _evaluate(tracks, detections, video_ids=video_ids, category_ids=category_ids)
    precision = evaluator.eval["precision"][..., -1]  # (thresholds, R, K, areas)
    recall = evaluator.eval["recall"]  # (thresholds, K, areas, most detections)
    found = summarise_precision(precision, sorted(category_ids))
    found.summary["AR1"] = mean_percent(recall[:, :, _ALL, 0])
    found.summary["AR10"] = mean_percent(recall[:, :, _ALL, 1])
    return found


def join_frames(segmentations: Sequence[Rle | None], size: tuple[int, int]) -> Rle:
    """Return one run-length code (H, TW) of T masks of ``size`` (H, W) side by side; None is an empty mask.

    Raises:
        InputError: the video has more pixels than can be counted.
    """
    height, width = size
    frame_pixels = height * width
    total = frame_pixels * len(segmentations)
    if total > _MAX_PIXELS:
        raise InputError(f"a video of {len(segmentations)} frames of {height} x {width} is too large to be evaluated")
    spans = [np.zeros((0, 2), dtype=np.int64)]
    for time, rle in enumerate(segmentations):
        if rle is not None:
            spans.append(_spans_of(rle) + time * frame_pixels)
    edges = np.concatenate(spans).reshape(-1)  # begin, end, begin, end, …
    # Spans that touch, from one frame to the next, are one run: pycocotools stumbles over runs of length 0.
    touching = np.flatnonzero(edges[1:-1:2] == edges[2::2])
    edges = np.delete(edges, np.concatenate([2 * touching + 1, 2 * touching + 2]))
    counts = np.diff(edges, prepend=0, append=total).tolist()
    return coco_mask.frPyObjects({"size": [height, width * len(segmentations)], "counts": counts}, height, width)


def mean_visible_area(areas: Sequence[float | None]) -> float:
    """Return the mean over the frames that show the object; 0 where none does."""
    visible = [area for area in areas if area]
    return float(np.mean(visible)) if visible else 0.0


def _spans_of(rle: Rle) -> np.ndarray:
    """Return spans (N, 2) int64 of the pixels inside, [begin, end), column by column, of a compressed code."""
    ends = np.cumsum(run_lengths(rle["counts"]))
    spans = ends[: len(ends) // 2 * 2].reshape(-1, 2)  # runs outside and inside take turns
    return spans[spans[:, 0] < spans[:, 1]]


def _evaluate(
    tracks: Sequence[Mapping[str, Any]],
    detections: Sequence[Mapping[str, Any]],
    *,
    video_ids: Sequence[Any],
    category_ids: Sequence[int],
) -> Any:
    from pycocotools.cocoeval import COCOeval

    class VideoEvaluation(COCOeval):
        def computeIoU(self, image_id: Any, category_id: int) -> Any:  # noqa: N802 (the name that is overridden)
            true, found = self._gts[image_id, category_id], self._dts[image_id, category_id]
            if not true or not found:
                return []
            order = np.argsort([-detection["score"] for detection in found], kind="mergesort")
            masks = [found[i]["mask"] for i in order[: self.params.maxDets[-1]]]
            # Parity: a crowd overlaps like any other object (test_video_crowd_is_neither_hit_nor_miss).
            return coco_mask.iou(masks, [track["mask"] for track in true], [0] * len(true))

    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        truth = _index(tracks, video_ids, category_ids)
        evaluator = VideoEvaluation(truth, _index(detections, video_ids, category_ids), iouType="bbox")
        evaluator.params.maxDets = list(MAX_DETECTIONS)
        evaluator.params.areaRng = [list(limits) for limits in AREA_RANGES]
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def _index(objects: Sequence[Mapping[str, Any]], video_ids: Sequence[Any], category_ids: Sequence[int]) -> Any:
    """Return objects as pycocotools stores them, with videos in the place of images."""
    from pycocotools.coco import COCO

    index = COCO()
    # Ids may be numbers and text, which cannot be put in an order together.
    in_order = sorted(video_ids, key=lambda video_id: (isinstance(video_id, str), video_id))
    number_of = {video_id: number for number, video_id in enumerate(in_order)}
    index.dataset = {
        "images": [{"id": number} for number in number_of.values()],
        "categories": [{"id": category_id} for category_id in category_ids],
        # Its matching takes an id of 0 for no match.
        "annotations": [
            {"iscrowd": 0, **entry, "image_id": number_of[entry["video_id"]], "id": i}
            for i, entry in enumerate(objects, start=1)
        ],
    }
    index.createIndex()
    return index
