"""Precision at every threshold, recall, category and area range, bit for bit that of pycocotools."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask2former.errors import DatasetError
from mask2former.evaluation.average_precision import AveragePrecision, PrecisionTally, compute_average_precision
from mask2former.evaluation.boundary import boundary_rle, pairwise_boundary_aware_iou
from mask2former.evaluation.coco_ground_truth import CocoGroundTruth
from mask2former.evaluation.coco_matching import IouType, match_image
from mask2former.structures import bitmasks_to_rles

SIZE = (150, 170)  # large enough for all of COCO's area ranges
CATEGORY_IDS = (3, 8, 9, 30)  # the last has no true instance
TASKS: tuple[IouType, ...] = ("segm", "bbox", "boundary")


def rectangle(box: np.ndarray) -> dict[str, Any]:
    """Mask and box of (x0, y0, width, height), which may reach outside of the image or be empty."""
    x, y, width, height = (int(number) for number in box)
    mask = np.zeros((1, *SIZE), dtype=bool)
    mask[0, max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)] = True
    (rle,) = bitmasks_to_rles(mask)
    return {"segmentation": rle, "bbox": coco_mask.toBbox(rle).tolist()}


def random_scene(seed: int, *, num_images: int = 3) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Crowds, images without truth or detection, tied scores, equal and empty masks, more than 100 of a category."""
    rng = np.random.default_rng(seed)
    image_ids = rng.choice(50, size=num_images, replace=False).tolist()
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image_id in image_ids:
        num_true = int(rng.choice([0, 1, 3, 8]))
        boxes = np.concatenate([rng.integers(-10, 120, (num_true, 2)), rng.choice([3, 20, 60, 130], (num_true, 2))], 1)
        for box in boxes:
            entry = {"id": len(annotations), "image_id": image_id, "category_id": int(rng.choice(CATEGORY_IDS[:3]))}
            shape = rectangle(box)
            area = int(coco_mask.area(shape["segmentation"])) if rng.random() < 0.8 else float(rng.choice([1024, 9216]))
            annotations.append({**entry, **shape, "iscrowd": int(rng.random() < 0.2), "area": area})
        num_found = int(rng.choice([0, 1, 12, 30, 130]))
        for _ in range(num_found):
            is_near = num_true and rng.random() < 0.8
            box = boxes[rng.integers(num_true)] if is_near else rng.integers(0, 100, 4)
            shape = rectangle(box + rng.choice([0, 0, 0, -1, 1, 4], 4))
            score = rng.choice([0.0, 0.25, 0.5, rng.random()])
            category = int(rng.choice(CATEGORY_IDS, p=[0.7, 0.1, 0.1, 0.1]))
            detections.append({"image_id": image_id, "category_id": category, "score": float(score), **shape})
    images = [{"id": image_id, "height": SIZE[0], "width": SIZE[1]} for image_id in image_ids]
    categories = [{"id": category, "name": str(category)} for category in CATEGORY_IDS]
    return {"images": images, "annotations": annotations, "categories": categories}, detections


class BoundaryEvaluation(COCOeval):
    """pycocotools' evaluation of masks, with the lesser of mask and boundary IoU."""

    def computeIoU(self, image_id: Any, category_id: int) -> Any:
        true, found = self._gts[image_id, category_id], self._dts[image_id, category_id]
        if not true or not found:
            return []
        best = [found[i] for i in np.argsort([-entry["score"] for entry in found], kind="mergesort")[:100]]
        predicted_masks, true_masks = ([entry["segmentation"] for entry in entries] for entries in (best, true))
        return pairwise_boundary_aware_iou(
            predicted_masks,
            true_masks,
            predicted_boundaries=[boundary_rle(mask) for mask in predicted_masks],
            true_boundaries=[boundary_rle(mask) for mask in true_masks],
            is_crowd=[annotation["iscrowd"] for annotation in true],
        )


def precision_of_pycocotools(truth: dict[str, Any], detections: list[dict[str, Any]], iou_type: str) -> np.ndarray:
    field = "bbox" if iou_type == "bbox" else "segmentation"
    fields = ("image_id", "category_id", "score", field)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        found = coco.loadRes([{key: copy.copy(entry[key]) for key in fields} for entry in detections])
        evaluator = (
            BoundaryEvaluation(coco, found, "segm") if iou_type == "boundary" else COCOeval(coco, found, iou_type)
        )
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"][..., -1]  # with at most 100 detections


def summary_of(precision: np.ndarray) -> list[float]:
    parts = [precision[..., 0], precision[0, ..., 0], precision[5, ..., 0], *(precision[..., i] for i in (1, 2, 3))]
    measured = [part[part > -1] for part in parts]
    return [100 * float(np.mean(values)) if values.size else np.nan for values in measured]


def tally_of(truth: CocoGroundTruth, detections: list[dict[str, Any]], iou_type: IouType) -> PrecisionTally:
    tally = PrecisionTally()
    for image_id in truth.image_sizes:
        found = [detection for detection in detections if detection["image_id"] == image_id]
        tally.add_image(image_id, match_image(truth.annotations_of(image_id), found, iou_type=iou_type))
    return tally


@given(seed=st.integers(0, 2**32 - 1))
@example(seed=0)
@settings(max_examples=12, deadline=None)
def test_average_precision_equals_pycocotools(seed: int) -> None:
    truth, detections = random_scene(seed)
    if not detections:
        return
    checked = CocoGroundTruth("truth", TASKS, content=copy.deepcopy(truth), as_pycocotools=True)
    for iou_type in TASKS:
        expected = precision_of_pycocotools(truth, detections, iou_type)
        precision = tally_of(checked, detections, iou_type).precision(CATEGORY_IDS)
        np.testing.assert_array_equal(precision, expected)
        actual = compute_average_precision(checked, detections, iou_type=iou_type)
        np.testing.assert_array_equal(list(actual.summary.values()), summary_of(expected))


def test_average_precision_by_category_is_that_of_the_category_alone() -> None:
    truth, detections = random_scene(5, num_images=6)
    checked = CocoGroundTruth("truth", TASKS, content=truth, as_pycocotools=True)
    together = compute_average_precision(checked, detections, iou_type="segm")
    assert np.isnan(together.by_category[30])
    for i, category in enumerate(CATEGORY_IDS[:3]):
        values = precision_of_pycocotools(truth, detections, "segm")[:, :, i, 0]
        assert together.by_category[category] == 100 * np.mean(values[values > -1])


def test_average_precision_of_parts_is_that_of_the_whole() -> None:
    truth, detections = random_scene(9, num_images=6)
    checked = CocoGroundTruth("truth", TASKS, content=truth)
    total = PrecisionTally()
    for image_id in reversed(list(checked.image_sizes)):
        part = PrecisionTally()
        found = [detection for detection in detections if detection["image_id"] == image_id]
        part.add_image(image_id, match_image(checked.annotations_of(image_id), found, iou_type="segm"))
        total += part
    whole = tally_of(checked, detections, "segm")
    assert total.num_detections == whole.num_detections > 0
    np.testing.assert_array_equal(total.precision(CATEGORY_IDS), whole.precision(CATEGORY_IDS))


@pytest.mark.parametrize("iou_type", TASKS)
def test_average_precision_without_detections_or_truth(iou_type: IouType) -> None:
    truth, detections = random_scene(5)
    checked = CocoGroundTruth("truth", TASKS, content=truth)
    assert compute_average_precision(checked, [], iou_type=iou_type).summary["AP"] == 0
    nothing = CocoGroundTruth("truth", TASKS, content={**truth, "annotations": []})
    empty: AveragePrecision = compute_average_precision(nothing, detections, iou_type=iou_type)
    assert np.isnan([*empty.summary.values(), *empty.by_category.values()]).all()
    assert np.isnan(PrecisionTally().average_precision(CATEGORY_IDS).summary["AP"])


def test_coco_ground_truth_refuses_ids_that_occur_twice() -> None:
    truth, _ = random_scene(5)
    truth["annotations"].append(dict(truth["annotations"][0]))
    with pytest.raises(DatasetError, match=r"truth\.json: annotation 0: the id occurs twice"):
        CocoGroundTruth("truth.json", TASKS, content=truth)
