"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", CVPR 2019), with COCO's rules for void and crowds.

Numbers equal panopticapi's. One histogram of pairs of ids (``ops/panoptic_maps.py``) holds every intersection. That of
a semantic model counts every class as stuff, one segment an image (PQ^St of Cheng et al., NeurIPS 2021).

G: ground-truth segments, P: predicted segments of one image, K: categories.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mask2former.errors import DatasetError, InputError
from mask2former.evaluation.protocol import Results
from mask2former.evaluation.results import check_percentages, format_table
from mask2former.evaluation.sem_seg import DEFAULT_IGNORE_LABEL, read_label_pairs
from mask2former.files.coco_panoptic import check_segment_ids
from mask2former.files.inputs import PathLike
from mask2former.ops import joint_histogram
from mask2former.structures.segmentations import is_plain_area

VOID_ID = 0
_NUM_IDS = 1 << 24  # what three bytes of colour can hold
_MATCH_IOU = 0.5
# Rows and columns of the histogram that are no segments.
_UNLISTED, _VOID, _FIRST_SEGMENT = 0, 1, 2


class Quality(NamedTuple):
    """Means over categories in percent, NaN where no category occurred, and the number of those that did."""

    pq: float
    sq: float
    rq: float
    num_categories: int


@dataclass
class PanopticTally:
    """Per category (K,): summed IoU of matches, true positives, false positives, false negatives."""

    iou_sum: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray

    @classmethod
    def zeros(cls, num_categories: int) -> PanopticTally:
        counts = (np.zeros(num_categories, dtype=np.int64) for _ in range(3))
        return cls(np.zeros(num_categories), *counts)

    def __iadd__(self, other: PanopticTally) -> PanopticTally:
        self.iou_sum += other.iou_sum
        self.tp += other.tp
        self.fp += other.fp
        self.fn += other.fn
        return self

    def quality_per_category(self) -> np.ndarray:
        """Return PQ, SQ, RQ (3, K) in percent; NaN where a category occurred neither in truth nor in prediction."""
        weight = self.tp + 0.5 * self.fp + 0.5 * self.fn
        with np.errstate(invalid="ignore", divide="ignore"):
            pq, rq = self.iou_sum / weight, self.tp / weight
            sq = np.where(self.tp > 0, self.iou_sum / self.tp, np.where(weight > 0, 0.0, np.nan))
        return 100 * np.stack([pq, sq, rq])

    def mean_quality(self, selected: np.ndarray) -> Quality:
        """Means over the selected (K,) bool categories that occurred."""
        occurred = selected & (self.tp + self.fp + self.fn > 0)
        if not occurred.any():
            return Quality(np.nan, np.nan, np.nan, 0)
        pq, sq, rq = self.quality_per_category()[:, occurred].mean(axis=1)
        return Quality(float(pq), float(sq), float(rq), int(occurred.sum()))


class PanopticScorer:
    """Add images to a tally. Categories are dataset ids; their order is that of the tally."""

    def __init__(self, category_ids: Sequence[int], *, takes_unlisted: bool = True) -> None:
        """``takes_unlisted``: accept pixels of the truth whose id no segment lists, as panopticapi does."""
        self._takes_unlisted = takes_unlisted
        self.tally = PanopticTally.zeros(len(category_ids))
        self._category_index = {category_id: index for index, category_id in enumerate(category_ids)}

    def add_image(
        self,
        truth: tuple[np.ndarray, Sequence[Mapping[str, Any]]],
        prediction: tuple[np.ndarray, Sequence[Mapping[str, Any]]],
        *,
        truth_name: str,
        prediction_name: str,
    ) -> None:
        """Compare one image, given as ids (H, W) and segments (``id``, ``category_id``; truth also ``iscrowd``).

        Raises:
            DatasetError: the truth names an unknown category or an id twice; ``truth_name`` says where.
            InputError: the same of the prediction, its size differs, or map and segments list different ids.
        """
        (truth_ids, truth_segments), (predicted_ids, predicted_segments) = truth, prediction
        if predicted_ids.shape != truth_ids.shape:
            raise InputError(
                f"{prediction_name}: size (height, width) is {predicted_ids.shape}, "
                f"that of the ground truth {truth_name} is {truth_ids.shape}"
            )
        truth_classes = self._classes_of(truth_segments, truth_name, DatasetError)
        predicted_classes = self._classes_of(predicted_segments, prediction_name, InputError)
        truth_listed = _listed_ids(truth_segments, truth_name, DatasetError)
        predicted_listed = _listed_ids(predicted_segments, prediction_name, InputError)
        joint = joint_histogram(
            _as_int32(truth_ids, truth_name, DatasetError),
            _as_int32(predicted_ids, prediction_name, InputError),
            truth_ids=truth_listed,
            predicted_ids=predicted_listed,
        )
        if joint[_UNLISTED].any():
            _check_range(truth_ids, truth_name, DatasetError)
            if not self._takes_unlisted:
                unlisted, _ = check_segment_ids(truth_ids, truth_segments)
                raise DatasetError(f"{truth_name}: segment ids {unlisted[:10]} are in the PNG and not in segments_info")
        _check_listed(joint, predicted_ids, predicted_segments, prediction_name)
        self._count(joint, truth_segments, truth_classes, predicted_classes)

    def _classes_of(
        self, segments: Sequence[Mapping[str, Any]], name: str, error: type[InputError]
    ) -> np.ndarray:  # (num_segments,) index of the category
        classes = np.empty(len(segments), dtype=np.int64)
        for i, segment in enumerate(segments):
            if "id" not in segment or "category_id" not in segment:
                raise error(f"{name}: a segment needs 'id' and 'category_id', found {sorted(segment)}")
            index = self._category_index.get(segment["category_id"])
            if index is None:
                known = sorted(self._category_index)
                shown = f"{known[:20]}{' …' if len(known) > 20 else ''}"
                raise error(
                    f"{name}: segment {segment['id']} has category id {segment['category_id']}, there are {shown}"
                )
            classes[i] = index
        return classes

    def _count(
        self,
        joint: np.ndarray,
        truth_segments: Sequence[Mapping[str, Any]],
        truth_classes: np.ndarray,
        predicted_classes: np.ndarray,
    ) -> None:
        intersections = joint[_FIRST_SEGMENT:, _FIRST_SEGMENT:]  # (G, P)
        on_void = joint[_VOID, _FIRST_SEGMENT:]  # (P,)
        predicted_areas = joint[:, _FIRST_SEGMENT:].sum(axis=0)  # (P,)
        is_crowd = np.array([bool(segment.get("iscrowd", 0)) for segment in truth_segments], dtype=bool)  # (G,)
        # Parity: panopticapi takes the area that the json states; test_evaluate_panoptic_uses_stated_area.
        counted = joint[_FIRST_SEGMENT:].sum(axis=1)
        stated = ((segment.get("area", area), area) for segment, area in zip(truth_segments, counted.tolist()))
        truth_areas = np.array([s if is_plain_area(s, area) else area for s, area in stated], dtype=np.float64)

        unions = predicted_areas + truth_areas[:, None] - intersections - on_void
        comparable = (truth_classes[:, None] == predicted_classes) & ~is_crowd[:, None] & (intersections > 0)
        ious = np.divide(intersections, unions, out=np.zeros(unions.shape), where=comparable & (unions != 0))
        is_match = ious > _MATCH_IOU
        truth_rows, predicted_columns = np.nonzero(is_match)
        np.add.at(self.tally.iou_sum, truth_classes[truth_rows], ious[truth_rows, predicted_columns])
        np.add.at(self.tally.tp, truth_classes[truth_rows], 1)

        is_missed = ~is_match.any(axis=1) & ~is_crowd
        np.add.at(self.tally.fn, truth_classes[is_missed], 1)
        ignored_areas = on_void + _areas_on_crowd(intersections, truth_classes, is_crowd, predicted_classes)
        is_ignored = ignored_areas / np.maximum(predicted_areas, 1) > _MATCH_IOU
        is_wrong = ~is_match.any(axis=0) & ~is_ignored
        np.add.at(self.tally.fp, predicted_classes[is_wrong], 1)


def _listed_ids(segments: Sequence[Mapping[str, Any]], name: str, error: type[InputError]) -> np.ndarray:
    """Void, then the ids of the segments: (1 + num_segments,) int32."""
    listed = [segment["id"] for segment in segments]
    if len(set(listed)) != len(listed):
        raise error(f"{name}: segment id {next(i for i in listed if listed.count(i) > 1)} is listed twice")
    for segment_id in listed:
        if not VOID_ID < segment_id < _NUM_IDS:
            raise error(f"{name}: segment id {segment_id} must lie in 1..{_NUM_IDS - 1} ({VOID_ID} is void)")
    return np.array([VOID_ID, *listed], dtype=np.int32)


def _as_int32(ids: np.ndarray, name: str, error: type[InputError]) -> np.ndarray:
    if not np.issubdtype(ids.dtype, np.integer):
        raise error(f"{name}: segment ids must be integers, found {ids.dtype}")
    if ids.dtype != np.int32:
        _check_range(ids, name, error)  # before numbers beyond int32 become others
    return ids.astype(np.int32, copy=False)


def _check_range(ids: np.ndarray, name: str, error: type[InputError]) -> None:
    if ids.size and not (ids.min() >= 0 and ids.max() < _NUM_IDS):
        raise error(f"{name}: segment ids must lie in 0..{_NUM_IDS - 1}, found {ids.min()}..{ids.max()}")


def _areas_on_crowd(
    intersections: np.ndarray, truth_classes: np.ndarray, is_crowd: np.ndarray, predicted_classes: np.ndarray
) -> np.ndarray:
    """Return pixels (P,) of each prediction on the crowd of its category."""
    areas = np.zeros(len(predicted_classes), dtype=np.int64)
    for row in np.flatnonzero(is_crowd):
        # Parity: of several crowds of a category the last one counts; test_scorer_counts_last_crowd_of_category.
        same = predicted_classes == truth_classes[row]
        areas[same] = intersections[row, same]
    return areas


def _check_listed(
    joint: np.ndarray, predicted_ids: np.ndarray, segments: Sequence[Mapping[str, Any]], name: str
) -> None:
    listed = [segment["id"] for segment in segments]
    if joint[:, _UNLISTED].any():
        _check_range(predicted_ids, name, InputError)
        unknown = sorted(set(np.unique(predicted_ids).tolist()) - {VOID_ID, *listed})
        raise InputError(f"{name}: segment ids {unknown[:10]} are in the map and not in segments_info")
    missing = [i for i, count in zip(listed, joint[:, _FIRST_SEGMENT:].sum(axis=0)) if count == 0]
    if missing:
        raise InputError(f"{name}: segment ids {missing[:10]} are in segments_info and nowhere in the map")


logger = logging.getLogger(__name__)


def evaluate_semantic_pq(
    gt_dir: PathLike,
    predictions: PathLike,
    *,
    class_names: Sequence[str],
    ignore_label: int = DEFAULT_IGNORE_LABEL,
    dataset_id_to_contiguous_id: Mapping[int, int] | None = None,
) -> Results:
    """``{"panoptic_seg": {PQ, SQ, RQ}}`` of saved label maps or a sem_seg_predictions.json, against label maps.

    Arguments and errors are those of ``evaluate_sem_seg``. Pixels without ground truth are void.
    """
    num_classes = len(class_names)
    scorer = PanopticScorer(range(num_classes))
    pairs = read_label_pairs(
        gt_dir,
        predictions,
        num_classes=num_classes,
        ignore_label=ignore_label,
        dataset_id_to_contiguous_id=dataset_id_to_contiguous_id,
    )
    for pair in pairs:
        scorer.add_image(
            _segments(pair.truth, num_classes),
            _segments(pair.prediction, num_classes),
            truth_name=str(pair.truth_file),
            prediction_name=pair.name,
        )
    mean = scorer.tally.mean_quality(np.ones(num_classes, dtype=bool))
    logger.info("panoptic quality, every class as stuff:\n%s", format_table(["PQ", "SQ", "RQ", "number"], [[*mean]]))
    per_category = scorer.tally.quality_per_category().T.tolist()
    rows = [[name, *quality] for name, quality in zip(class_names, per_category)]
    logger.info("by class:\n%s", format_table(["class", "PQ", "SQ", "RQ"], rows))
    return check_percentages({"panoptic_seg": {"PQ": mean.pq, "SQ": mean.sq, "RQ": mean.rq}})


def _segments(labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return ids (H, W) and segments of a label map in which ``num_classes`` is void.

    A segment's id is its class + 1.
    """
    ids = np.where(labels == num_classes, VOID_ID, labels + 1)
    present = np.flatnonzero(np.bincount(ids.reshape(-1), minlength=num_classes + 1)[1:])
    return ids, [{"id": label + 1, "category_id": label} for label in present.tolist()]
