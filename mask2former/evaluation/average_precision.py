"""COCO's average precision, computed by pycocotools or, where asked for, by faster-coco-eval.

pycocotools is the default because published numbers are its numbers. The other takes a fraction of the time and differs
in the last bit of some precisions, so that AP moves by less than 1e-12 (test_average_precision_backends_agree).
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from mask2former.evaluation.boundary import boundary_rle, pairwise_boundary_aware_iou

IouType = Literal["segm", "bbox", "boundary"]
Backend = Literal["faster-coco-eval", "pycocotools"]

MAX_DETECTIONS = 100  # by category and image, as COCO counts
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)  # COCO's area ranges
_IOU_50, _IOU_75 = 0, 5  # positions in COCO's thresholds 0.5, 0.55, …, 0.95


class AveragePrecision(NamedTuple):
    """AP in percent: COCO's six summary values by name, and one by category id; NaN where nothing can be measured."""

    summary: dict[str, float]
    by_category: dict[int, float]


def compute_average_precision(
    ground_truth: dict[str, Any],
    detections: Sequence[dict[str, Any]],
    *,
    iou_type: IouType,
    backend: Backend = "pycocotools",
) -> AveragePrecision:
    """AP of detections: ``image_id``, ``category_id``, ``score`` and ``segmentation`` or ``bbox`` (xywh).

    "boundary" compares masks by the lesser of mask IoU and boundary IoU, with pycocotools whatever the ``backend``.
    Both arguments are in COCO's form, taken to be valid, and left as they are.
    """
    category_ids = sorted(category["id"] for category in ground_truth["categories"])
    is_faster = backend == "faster-coco-eval" and iou_type != "boundary"
    evaluate = _evaluate_faster if is_faster else _evaluate_pycocotools
    # Mask AP goes by the area of the mask: a box in the entry would take its place.
    fields = ("image_id", "category_id", "score", "bbox" if iou_type == "bbox" else "segmentation")
    own_detections = [{field: copy.copy(detection[field]) for field in fields} for detection in detections]
    precision = evaluate(_own_ground_truth(ground_truth), own_detections, iou_type)  # (thresholds, R, K, areas, max)
    at_most_100 = precision[..., -1]
    summary = {
        "AP": _percent(at_most_100[..., _ALL]),
        "AP50": _percent(at_most_100[_IOU_50, ..., _ALL]),
        "AP75": _percent(at_most_100[_IOU_75, ..., _ALL]),
        "APs": _percent(at_most_100[..., _SMALL]),
        "APm": _percent(at_most_100[..., _MEDIUM]),
        "APl": _percent(at_most_100[..., _LARGE]),
    }
    by_category = {category: _percent(at_most_100[:, :, i, _ALL]) for i, category in enumerate(category_ids)}
    return AveragePrecision(summary, by_category)


def _percent(precision: np.ndarray) -> float:
    measured = precision[precision > -1]  # -1: no ground truth
    return 100.0 * float(np.mean(measured)) if measured.size else float("nan")


def _own_ground_truth(ground_truth: dict[str, Any]) -> dict[str, Any]:
    # Evaluation writes flags and converted masks into the annotations.
    return {**ground_truth, "annotations": [dict(annotation) for annotation in ground_truth["annotations"]]}


def _evaluate_faster(ground_truth: dict[str, Any], detections: list[dict[str, Any]], iou_type: IouType) -> np.ndarray:
    from faster_coco_eval import COCO, COCOeval_faster

    truth = COCO(ground_truth)
    evaluator = COCOeval_faster(truth, truth.loadRes(detections), iouType=iou_type)
    evaluator.params.maxDets = [1, 10, MAX_DETECTIONS]
    evaluator.evaluate()
    evaluator.accumulate()
    return np.asarray(evaluator.eval["precision"])


def _evaluate_pycocotools(
    ground_truth: dict[str, Any], detections: list[dict[str, Any]], iou_type: IouType
) -> np.ndarray:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        truth = COCO()
        truth.dataset = ground_truth
        truth.createIndex()
        if iou_type == "boundary":
            evaluator = _boundary_evaluator(truth, truth.loadRes(detections))
        else:
            evaluator = COCOeval(truth, truth.loadRes(detections), iouType=iou_type)
        evaluator.params.maxDets = [1, 10, MAX_DETECTIONS]
        evaluator.evaluate()
        evaluator.accumulate()
    return np.asarray(evaluator.eval["precision"])


def _boundary_evaluator(truth: Any, detections: Any) -> Any:
    """pycocotools' evaluation of masks with another IoU."""
    from pycocotools.cocoeval import COCOeval

    class BoundaryEvaluation(COCOeval):
        def computeIoU(self, image_id: Any, category_id: int) -> Any:  # noqa: N802 (the name that is overridden)
            true, found = self._gts[image_id, category_id], self._dts[image_id, category_id]
            if not true or not found:
                return []
            order = np.argsort([-detection["score"] for detection in found], kind="mergesort")
            best = [found[i] for i in order[: self.params.maxDets[-1]]]
            return pairwise_boundary_aware_iou(
                [detection["segmentation"] for detection in best],
                [annotation["segmentation"] for annotation in true],
                predicted_boundaries=[boundary_rle(detection["segmentation"]) for detection in best],
                true_boundaries=[boundary_rle(annotation["segmentation"]) for annotation in true],
                is_crowd=[int(annotation["iscrowd"]) for annotation in true],
            )

    return BoundaryEvaluation(truth, detections, iouType="segm")
