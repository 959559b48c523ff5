"""Which detections of an image match its true instances, by COCO's rules.

Overlaps are computed by pycocotools. What it then does for one detection, threshold and area range after the other is
done here for all thresholds and ranges at once, and only for detections that overlap enough to match anything; the
results are equal bit for bit (test_average_precision_equals_pycocotools).

D detections and G true instances of one image and category, A area ranges, T IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import Params

from mask2former.evaluation.boundary import boundary_rle, pairwise_boundary_aware_iou

IouType = Literal["segm", "bbox", "boundary"]

MAX_DETECTIONS = 100  # by category and image, as COCO counts
RECALLS: np.ndarray = Params(iouType="segm").recThrs
AREA_RANGES = np.array(Params(iouType="segm").areaRng, dtype=np.float64)  # (A, 2), both ends included
# As pycocotools has it, an overlap of all but 1e-10 is a match at any threshold.
IOU_THRESHOLDS: np.ndarray = np.minimum(Params(iouType="segm").iouThrs, 1 - 1e-10)


class ImageMatches(NamedTuple):
    """Detections of one image, those of a category together and by descending score, and its true instances.

    A detection that matches an ignored instance, or that matches none and is outside the area range, is ignored.
    """

    categories: np.ndarray  # (D,) category id
    scores: np.ndarray  # (D,) float64
    is_matched: np.ndarray  # (D, A, T) bool
    is_ignored: np.ndarray  # (D, A, T) bool
    true_categories: np.ndarray  # (G,) category id
    is_counted: np.ndarray  # (G, A) bool: in the area range and no crowd


def match_image(
    true_instances: Sequence[Mapping[str, Any]], detections: Sequence[Mapping[str, Any]], *, iou_type: IouType
) -> ImageMatches:
    """Match the detections of an image with its true instances, category by category.

    True instances have ``id``, ``category_id``, ``area``, ``iscrowd``, and a ``segmentation`` as run-length code or a
    ``bbox`` (xywh); detections have ``category_id``, ``score`` and the same. "boundary" takes the lesser of mask IoU
    and boundary IoU.
    """
    found = _best_by_category(detections)
    is_outside = _is_outside(_areas_of(found, iou_type))
    matches = ImageMatches(
        np.array([detection["category_id"] for detection in found], dtype=np.int64),
        np.array([detection["score"] for detection in found], dtype=np.float64),
        np.zeros((len(found), len(AREA_RANGES), len(IOU_THRESHOLDS)), dtype=bool),
        np.repeat(is_outside[..., None], len(IOU_THRESHOLDS), axis=2),
        np.array([instance["category_id"] for instance in true_instances], dtype=np.int64),
        ~_is_ignored(true_instances),
    )
    for category in np.unique(matches.true_categories):
        start, end = np.searchsorted(matches.categories, [category, category + 1]).tolist()
        if start < end:
            true_of_category = [true_instances[i] for i in np.flatnonzero(matches.true_categories == category).tolist()]
            ious = _pairwise_iou(found[start:end], true_of_category, iou_type)
            _match_category(ious, true_of_category, matches.is_matched[start:end], matches.is_ignored[start:end])
    return matches


def _best_by_category(detections: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """By category id, then by descending score (ties as they come), at most 100 of a category."""
    categories = np.array([detection["category_id"] for detection in detections], dtype=np.int64)
    scores = np.array([detection["score"] for detection in detections], dtype=np.float64)
    order = np.lexsort((-scores, categories))
    in_order = categories[order]
    rank = np.arange(len(order)) - np.searchsorted(in_order, in_order)
    return [detections[i] for i in order[rank < MAX_DETECTIONS].tolist()]


def _match_category(
    ious: np.ndarray, true_instances: Sequence[Mapping[str, Any]], is_matched: np.ndarray, is_ignored: np.ndarray
) -> None:
    """Fill ``is_matched`` and ``is_ignored`` (D, A, T) of one category from its IoUs (D, G)."""
    candidates = np.flatnonzero(ious.max(axis=1) >= IOU_THRESHOLDS[0])
    if not len(candidates):
        return
    is_crowd = np.array([bool(instance["iscrowd"]) for instance in true_instances])
    true_ignored = _is_ignored(true_instances)  # (G, A)
    matches = _assign(ious[candidates], is_crowd, true_ignored.T)  # (C, A, T)
    has_match = matches >= 0
    # Parity: pycocotools writes down the id of the match, and 0 stands for none; the truth numbers anew what has it.
    can_be_found = np.array([instance["id"] != 0 for instance in true_instances])
    is_matched[candidates] = has_match & can_be_found[matches]
    match_ignored = has_match & true_ignored[matches, np.arange(len(AREA_RANGES))[:, None]]
    is_ignored[candidates] = match_ignored | (is_ignored[candidates] & ~is_matched[candidates])


def _assign(ious: np.ndarray, is_crowd: np.ndarray, is_ignored: np.ndarray) -> np.ndarray:
    """Return the true instance (D, A, T) that each detection matches, -1 for none.

    Each takes, in order, the instance of greatest IoU (D, G) that is not taken, the last among equals; an ignored one
    (A, G) only if no other is left. Crowds (G,) are never taken.
    """
    num_found, num_true = ious.shape
    num_areas, num_thresholds = len(is_ignored), len(IOU_THRESHOLDS)
    ranks = np.empty(ious.shape, dtype=np.int64)  # from 1 on, the best last
    np.put_along_axis(ranks, np.argsort(ious, axis=1, kind="stable"), np.arange(1, num_true + 1)[None], axis=1)
    ranks = ranks[:, None] + num_true * ~is_ignored  # (D, A, G): those that count before the ignored
    overlaps_enough = ious[:, None] >= IOU_THRESHOLDS[:, None]  # (D, T, G)
    # The column before the instances stands for none: of only zeros, argmax takes the first.
    worth = np.zeros((num_found, num_areas, num_thresholds, 1 + num_true), dtype=np.int64)
    np.multiply(ranks[:, :, None], overlaps_enough[:, None], out=worth[..., 1:])
    worth = worth.reshape(num_found, num_areas * num_thresholds, 1 + num_true)
    stays_open = np.append(True, is_crowd)
    rows = np.arange(worth.shape[1])
    assigned = np.empty(worth.shape[:2], dtype=np.int64)
    is_open = np.ones(worth.shape[1:], dtype=bool)
    for worth_of_one, match in zip(worth, assigned):
        (worth_of_one * is_open).argmax(axis=1, out=match)
        is_open[rows, match] = stays_open[match]
    return assigned.reshape(num_found, num_areas, num_thresholds) - 1


def _is_outside(areas: np.ndarray) -> np.ndarray:
    """Return which areas (N,) are outside each range: (N, A)."""
    return (areas[:, None] < AREA_RANGES[:, 0]) | (areas[:, None] > AREA_RANGES[:, 1])


def _is_ignored(true_instances: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Crowds, and what is outside the area range: (G, A)."""
    areas = np.array([instance["area"] for instance in true_instances], dtype=np.float64)
    is_crowd = np.array([bool(instance["iscrowd"]) for instance in true_instances], dtype=bool)
    return _is_outside(areas) | is_crowd[:, None]


def _areas_of(detections: Sequence[Mapping[str, Any]], iou_type: IouType) -> np.ndarray:
    if not detections:
        return np.zeros(0)
    if iou_type == "bbox":
        return np.array([detection["bbox"][2] * detection["bbox"][3] for detection in detections], dtype=np.float64)
    return coco_mask.area([detection["segmentation"] for detection in detections]).astype(np.float64)


def _pairwise_iou(
    detections: Sequence[Mapping[str, Any]], true_instances: Sequence[Mapping[str, Any]], iou_type: IouType
) -> np.ndarray:  # (D, G)
    is_crowd = [int(instance["iscrowd"]) for instance in true_instances]
    field = "bbox" if iou_type == "bbox" else "segmentation"
    found = [detection[field] for detection in detections]
    true = [instance[field] for instance in true_instances]
    if iou_type != "boundary":
        return coco_mask.iou(found, true, is_crowd)
    return pairwise_boundary_aware_iou(
        found,
        true,
        predicted_boundaries=[boundary_rle(rle) for rle in found],
        true_boundaries=[boundary_rle(rle) for rle in true],
        is_crowd=is_crowd,
    )
