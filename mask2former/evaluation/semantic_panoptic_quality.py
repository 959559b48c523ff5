"""Panoptic quality of a semantic model: every class counts as stuff, one segment an image.

Cheng et al., "Per-Pixel Classification is Not All You Need for Semantic Segmentation", NeurIPS 2021 (there PQ^St).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mask2former.evaluation.panoptic_quality import VOID_ID, PanopticScorer
from mask2former.evaluation.protocol import Results
from mask2former.evaluation.results import check_percentages, format_table
from mask2former.evaluation.sem_seg import DEFAULT_IGNORE_LABEL, read_label_pairs
from mask2former.files.inputs import PathLike

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
