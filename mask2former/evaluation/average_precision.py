"""COCO's average precision from the matches of all images; equal to pycocotools', bit for bit.

A area ranges, T IoU thresholds, R recall levels, K categories, N detections of a category.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mask2former.evaluation.coco_ground_truth import CocoGroundTruth
from mask2former.evaluation.coco_matching import (
    AREA_RANGES,
    IOU_THRESHOLDS,
    RECALLS,
    ImageMatches,
    IouType,
    match_image,
)

_ALL, _SMALL, _MEDIUM, _LARGE = range(4)  # COCO's area ranges
_IOU_50, _IOU_75 = 0, 5  # positions in COCO's thresholds 0.5, 0.55, …, 0.95
_NOT_MEASURED = -1.0  # pycocotools' value where there is no true instance


class AveragePrecision(NamedTuple):
    """AP in percent: COCO's six summary values by name, and one by category id; NaN where nothing can be measured."""

    summary: dict[str, float]
    by_category: dict[int, float]


class PrecisionTally:
    """The matches of the images seen so far, without their masks: about 100 bytes a detection."""

    def __init__(self) -> None:
        self._matches: dict[Any, ImageMatches] = {}

    def add_image(self, image_id: Any, matches: ImageMatches) -> None:
        """Keep the matches of an image; those of the same image that came before are forgotten."""
        self._matches[image_id] = matches

    def __iadd__(self, other: PrecisionTally) -> PrecisionTally:
        self._matches.update(other._matches)
        return self

    @property
    def num_detections(self) -> int:
        """Detections of all images that were counted."""
        return sum(len(matches.scores) for matches in self._matches.values())

    def average_precision(self, category_ids: Iterable[int]) -> AveragePrecision:
        """Return AP over the categories and of each."""
        category_ids = sorted(category_ids)
        return summarise_precision(self.precision(category_ids), category_ids)

    def precision(self, category_ids: Sequence[int]) -> np.ndarray:
        """Return the precision (T, R, K, A) at each recall level, -1 where there is no true instance."""
        precision = np.full((len(IOU_THRESHOLDS), len(RECALLS), len(category_ids), len(AREA_RANGES)), _NOT_MEASURED)
        if not self._matches:
            return precision
        # Ties in score are resolved by the order of the images' ids.
        in_order = [self._matches[image_id] for image_id in sorted(self._matches, key=_in_order)]
        everything = ImageMatches(*(np.concatenate(field) for field in zip(*in_order)))
        by_category = np.argsort(everything.categories, kind="stable")
        sorted_categories = everything.categories[by_category]
        for k, category in enumerate(category_ids):
            start, end = np.searchsorted(sorted_categories, [category, category + 1])
            of_category = by_category[start:end]
            best_first = of_category[np.argsort(-everything.scores[of_category], kind="stable")]
            counted = everything.is_counted[everything.true_categories == category].sum(axis=0)  # (A,)
            is_matched = everything.is_matched[best_first].transpose(1, 2, 0)  # (A, T, N)
            is_ignored = everything.is_ignored[best_first].transpose(1, 2, 0)
            for area in np.flatnonzero(counted):
                precision[:, :, k, area] = _precision_at_recalls(is_matched[area], is_ignored[area], counted[area])
        return precision


def summarise_precision(precision: np.ndarray, category_ids: Sequence[int]) -> AveragePrecision:
    """Return AP of precision (T, R, K, A), -1 where there is no true instance, of categories in this order."""
    summary = {
        "AP": mean_percent(precision[..., _ALL]),
        "AP50": mean_percent(precision[_IOU_50, ..., _ALL]),
        "AP75": mean_percent(precision[_IOU_75, ..., _ALL]),
        "APs": mean_percent(precision[..., _SMALL]),
        "APm": mean_percent(precision[..., _MEDIUM]),
        "APl": mean_percent(precision[..., _LARGE]),
    }
    by_category = {category: mean_percent(precision[:, :, i, _ALL]) for i, category in enumerate(category_ids)}
    return AveragePrecision(summary, by_category)


def compute_average_precision(
    truth: CocoGroundTruth, detections: Sequence[Mapping[str, Any]], *, iou_type: IouType
) -> AveragePrecision:
    """Return AP of detections: ``image_id``, ``category_id``, ``score`` and ``segmentation`` (RLE) or ``bbox`` (xywh).

    "boundary" compares masks by the lesser of mask IoU and boundary IoU. Detections are taken to be valid.
    """
    found_of: dict[Any, list[Mapping[str, Any]]] = {image_id: [] for image_id in truth.image_sizes}
    for detection in detections:
        found_of[detection["image_id"]].append(detection)
    tally = PrecisionTally()
    for image_id, found in found_of.items():
        tally.add_image(image_id, match_image(truth.annotations_of(image_id), found, iou_type=iou_type))
    return tally.average_precision(truth.category_names)


def _in_order(image_id: Any) -> tuple[bool, Any]:
    return isinstance(image_id, str), image_id  # numbers and text cannot be compared


def _precision_at_recalls(is_matched: np.ndarray, is_ignored: np.ndarray, num_true: int) -> np.ndarray:
    """Return the precision (T, R) at the recall levels, of detections (T, N) that are sorted by score."""
    true_positives = np.cumsum(is_matched & ~is_ignored, axis=1).astype(np.float64)
    false_positives = np.cumsum(~is_matched & ~is_ignored, axis=1).astype(np.float64)
    recall = true_positives / num_true
    # Parity: with this summand the precision of a single true positive is a little below 1.
    precision = true_positives / (false_positives + true_positives + np.spacing(1))
    # The precision at a recall is the best at that recall or a higher one, 0 where none is as high.
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    best = np.concatenate([best, np.zeros((len(best), 1))], axis=1)
    return np.stack([row[np.searchsorted(levels, RECALLS)] for row, levels in zip(best, recall)])


def mean_percent(values: np.ndarray) -> float:
    """Return the mean of what was measured, in percent; NaN where nothing was."""
    measured = values[values > _NOT_MEASURED]
    return 100.0 * float(np.mean(measured)) if measured.size else float("nan")
