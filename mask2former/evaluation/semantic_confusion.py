"""Confusion matrices of label maps, counts of their boundary pixels, and the metrics computed from them.

K: classes. Boundary IoU: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", 2021, is
BIoU here. BoundaryIoU is the value of that name in the published evaluator, which compares differences of label
numbers; it is no measure of quality: a class that is never predicted can reach 90.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import cv2
import numpy as np

from mask2former.evaluation.boundary import boundary_width, label_boundary

logger = logging.getLogger(__name__)

# Eroding works on bytes, and one value stands for ignored pixels.
_MAX_CLASSES_WITH_BOUNDARY = 254


class SemanticConfusion:
    """Counts of pixels and of boundary values, (K + 1, K + 1) int64 each: row predicted, column true, K for ignored.

    Also counts the pixels in the boundaries of each class, (3, K) int64: in both, predicted, true.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.pixels = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
        self.contours = np.zeros((3, num_classes), dtype=np.int64)
        self.boundaries: np.ndarray | None = None
        if num_classes <= _MAX_CLASSES_WITH_BOUNDARY:
            self.boundaries = np.zeros_like(self.pixels)

    def add_image(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Count label maps (H, W) of one image: truth in 0..K, where K is to be ignored; prediction in 0..K-1."""
        self.pixels += self._histogram(truth, prediction)
        self._add_contours(truth, prediction)
        if self.boundaries is not None:
            self.boundaries += self._histogram(_boundary_values(truth), _boundary_values(prediction))

    def __iadd__(self, other: SemanticConfusion) -> SemanticConfusion:
        self.pixels += other.pixels
        self.contours += other.contours
        if self.boundaries is not None and other.boundaries is not None:
            self.boundaries += other.boundaries
        return self

    def metrics(self, class_names: Sequence[str]) -> dict[str, float]:
        """Return mIoU, fwIoU, mACC, pACC, mBIoU and IoU, ACC, BIoU, BoundaryIoU by class, in percent.

        NaN where there is nothing to measure. BoundaryIoU is left out (with a log line) for more than 254 classes.
        """
        counted = self.pixels[:-1, :-1].astype(np.float64)
        true_positives, num_true = counted.diagonal(), counted.sum(axis=0)
        accuracy = _divide(true_positives, num_true)
        iou = np.where(num_true > 0, _iou(counted), np.nan)
        metrics = {"mIoU": _mean(iou), "fwIoU": float(np.nansum(iou * _divide(num_true, num_true.sum())))}
        if not num_true.any():
            metrics["fwIoU"] = np.nan
        metrics.update(self._metrics_by_class(class_names, iou))
        metrics["mACC"], metrics["pACC"] = _mean(accuracy), float(_divide(true_positives.sum(), num_true.sum()))
        metrics.update({f"ACC-{name}": float(accuracy[i]) for i, name in enumerate(class_names)})
        boundary_iou = self._boundary_iou()
        metrics["mBIoU"] = _mean(boundary_iou)
        metrics.update({f"BIoU-{name}": float(boundary_iou[i]) for i, name in enumerate(class_names)})
        return {name: 100.0 * value for name, value in metrics.items()}

    def _boundary_iou(self) -> np.ndarray:
        overlap, num_predicted, num_true = self.contours.astype(np.float64)
        return np.where(num_true > 0, _divide(overlap, num_predicted + num_true - overlap), np.nan)

    def _metrics_by_class(self, class_names: Sequence[str], iou: np.ndarray) -> dict[str, float]:
        if self.boundaries is None:
            logger.info("no BoundaryIoU: it is for %d classes at most; BIoU is for any", _MAX_CLASSES_WITH_BOUNDARY)
            return {f"IoU-{name}": float(iou[i]) for i, name in enumerate(class_names)}
        boundary_iou = _iou(self.boundaries[:-1, :-1].astype(np.float64))
        metrics = {}
        for i, name in enumerate(class_names):
            metrics[f"IoU-{name}"] = float(iou[i])
            metrics[f"BoundaryIoU-{name}"] = float(boundary_iou[i])
            # Parity: Python's min, so NaN of the first is kept and NaN of the second is passed over.
            metrics[f"min(IoU, B-Iou)-{name}"] = min(float(iou[i]), float(boundary_iou[i]))
        return metrics

    def _add_contours(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        is_ignored = truth == self.num_classes
        in_true, in_predicted = label_boundary(truth, is_ignored), label_boundary(prediction, is_ignored)
        in_both = in_true & in_predicted & (truth == prediction)
        for row, (labels, chosen) in enumerate([(truth, in_both), (prediction, in_predicted), (truth, in_true)]):
            self.contours[row] += np.bincount(labels[chosen], minlength=self.num_classes)

    def _histogram(self, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
        size = self.num_classes + 1
        pairs = size * prediction.astype(np.int64) + truth
        return np.bincount(pairs.reshape(-1), minlength=size * size).reshape(size, size)


def _boundary_values(labels: np.ndarray) -> np.ndarray:
    """Return each label (H, W) minus the least label within the boundary width; outside the image counts as 0.

    Parity: the published evaluator erodes the label map rather than the mask of each class, so that the value of a
    boundary pixel is a difference of label numbers and counts for the class of that number;
    test_boundary_iou_compares_differences_of_labels.
    """
    reach = boundary_width((labels.shape[0], labels.shape[1]))
    labels = labels.astype(np.uint8)
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), dtype=np.uint8)
    least = cv2.erode(labels, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=(0, 0, 0, 0))
    return labels - least


def _iou(confusion: np.ndarray) -> np.ndarray:
    true_positives = confusion.diagonal()
    return _divide(true_positives, confusion.sum(axis=0) + confusion.sum(axis=1) - true_positives)


def _divide(numerator: np.ndarray | float, denominator: np.ndarray | float) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.asarray(denominator) > 0, np.divide(numerator, denominator), np.nan)


def _mean(values: np.ndarray) -> float:
    measured = values[~np.isnan(values)]
    return float(measured.mean()) if len(measured) else np.nan
