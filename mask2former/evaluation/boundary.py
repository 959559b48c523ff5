"""Boundary IoU of masks.

Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

BOUNDARY_RATIO = 0.02  # width of the boundary as a share of the image diagonal (section 4)


def boundary_width(size: tuple[int, int]) -> int:
    """Return how many pixels a mask's boundary reaches inwards in an image of ``size`` (height, width); at least 1."""
    return max(1, round(BOUNDARY_RATIO * float(np.hypot(*size))))


def mask_boundary(mask: np.ndarray) -> np.ndarray:
    """Return the pixels (H, W) bool of a mask (H, W) bool within the boundary width of its contour.

    The edge of the image counts as contour.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    boundary = np.zeros_like(mask)
    if not len(rows):
        return boundary
    # Outside its box the mask is empty, as it is taken to be outside the image: only the box is eroded.
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    reach = boundary_width((mask.shape[0], mask.shape[1]))
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), dtype=np.uint8)
    inside = mask[box].astype(np.uint8)
    interior = cv2.erode(inside, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=(0, 0, 0, 0))
    boundary[box] = inside > interior
    return boundary


def label_boundary(labels: np.ndarray, is_ignored: np.ndarray) -> np.ndarray:
    """Return the pixels (H, W) bool of a label map (H, W) that ``mask_boundary`` finds in the mask of their label.

    Ignored pixels belong to no boundary, and an edge towards them is no contour, because the class behind it is
    unknown.
    """
    reach = boundary_width((labels.shape[0], labels.shape[1]))
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), dtype=np.uint8)
    # Within reach of a boundary the least and the greatest label differ; outside the image lies 0, which is no label.
    labels = labels.astype(np.uint16) + 1
    least = np.where(is_ignored, np.iinfo(labels.dtype).max, labels)
    least = cv2.erode(least, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=(0, 0, 0, 0))
    greatest = cv2.dilate(np.where(is_ignored, 0, labels), kernel, borderType=cv2.BORDER_CONSTANT)
    return (least != greatest) & ~is_ignored


def boundary_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Return IoU in 0..1 of the boundaries of two masks (H, W) bool; NaN where both are empty."""
    a, b = mask_boundary(a), mask_boundary(b)
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else float("nan")


def boundary_rle(rle: dict[str, Any]) -> dict[str, Any]:
    """Return the run-length code of a mask's boundary, given that of the mask."""
    return coco_mask.encode(np.asfortranarray(mask_boundary(coco_mask.decode(rle).astype(bool))).astype(np.uint8))


def pairwise_boundary_aware_iou(
    predicted: Sequence[dict[str, Any]],
    true: Sequence[dict[str, Any]],
    *,
    predicted_boundaries: Sequence[dict[str, Any]],
    true_boundaries: Sequence[dict[str, Any]],
    is_crowd: Sequence[int],
) -> np.ndarray:
    """Return the lesser of mask IoU and boundary IoU (P, N) of run-length codes.

    For a crowd the union is the area of the prediction alone.
    """
    mask_ious = coco_mask.iou(list(predicted), list(true), list(is_crowd))
    boundary_ious = coco_mask.iou(list(predicted_boundaries), list(true_boundaries), list(is_crowd))
    return np.minimum(mask_ious, boundary_ious)
