"""Boundaries of masks, and average precision by them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from mask2former.evaluation import COCOEvaluator, boundary_iou
from mask2former.evaluation.average_precision import compute_average_precision
from mask2former.evaluation.boundary import boundary_rle, boundary_width, mask_boundary
from mask2former.evaluation.coco_ground_truth import CocoGroundTruth
from mask2former.structures import bitmasks_to_rles
from tests.evaluation.reference_data import ReferenceData

SIZE = (90, 121)  # diagonal 150.8: boundaries of 3 pixels


def brute_force_boundary(mask: np.ndarray, reach: int) -> np.ndarray:
    padded = np.pad(mask, reach)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * reach + 1, 2 * reach + 1))
    return mask & ~windows.all(axis=(2, 3))


def test_mask_boundary_equals_brute_force() -> None:
    rng = np.random.default_rng(0)
    reach = boundary_width(SIZE)
    assert reach == 3
    for share in (0.5, 0.02):
        blobs = np.kron(rng.random((9, 11)) > share, np.ones((10, 11), dtype=bool))
        np.testing.assert_array_equal(mask_boundary(blobs), brute_force_boundary(blobs, boundary_width(blobs.shape)))
    assert not mask_boundary(np.zeros(SIZE, dtype=bool)).any()
    full = mask_boundary(np.ones(SIZE, dtype=bool))
    assert full[:3].all()
    assert not full[3:-3, 3:-3].any()


def test_boundary_iou_is_one_of_equal_and_nan_of_empty_masks() -> None:
    mask = np.zeros(SIZE, dtype=bool)
    assert np.isnan(boundary_iou(mask, mask))
    mask[20:60, 30:90] = True
    assert boundary_iou(mask, mask) == 1.0
    assert boundary_iou(mask, np.roll(mask, 4, axis=1)) < 0.5
    assert boundary_iou(mask, np.zeros_like(mask)) == 0.0


def scene(shift: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    mask = np.zeros((1, *SIZE), dtype=bool)
    mask[:, 20:70, 20:90] = True
    (true,), (found,) = bitmasks_to_rles(mask), bitmasks_to_rles(np.roll(mask, shift, axis=2))
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": true, "area": 3500}
    truth = {
        "images": [{"id": 1, "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{**annotation, "bbox": coco_mask.toBbox(true).tolist()}],
    }
    return truth, [{"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": found}]


@pytest.mark.parametrize("shift", [0, 1, 2, 5, 40])
def test_boundary_ap_follows_the_lesser_iou(shift: int) -> None:
    truth, found = scene(shift)
    true_mask, found_mask = (
        coco_mask.decode(entry["segmentation"]).astype(bool) for entry in (truth["annotations"][0], found[0])
    )
    iou = min((true_mask & found_mask).sum() / (true_mask | found_mask).sum(), boundary_iou(true_mask, found_mask))
    expected = 100 * np.mean([iou >= threshold for threshold in np.arange(0.5, 1.0, 0.05)])
    checked = CocoGroundTruth("truth", ("segm", "boundary"), content=truth)
    precision = compute_average_precision(checked, found, iou_type="boundary")
    assert precision.summary["AP"] == pytest.approx(expected)
    assert precision.summary["AP"] <= compute_average_precision(checked, found, iou_type="segm").summary["AP"]


def test_boundary_rle_is_that_of_the_boundary() -> None:
    rle = scene(0)[1][0]["segmentation"]
    boundary = coco_mask.decode(boundary_rle(rle)).astype(bool)
    np.testing.assert_array_equal(boundary, mask_boundary(coco_mask.decode(rle).astype(bool)))


def test_coco_evaluator_reports_boundary_ap(reference: ReferenceData) -> None:
    evaluator = COCOEvaluator(reference.name, tasks=("segm", "boundary"))
    evaluator.process(reference.inputs, reference.outputs)
    results = evaluator.evaluate()
    assert results is not None
    assert results["segm"]["AP"] == pytest.approx(reference.expected["segm"]["AP"])
    assert 0 < results["boundary"]["AP"] <= results["segm"]["AP"]
    nothing = {"instances": reference.outputs[0]["instances"][torch.zeros(0, dtype=torch.long)]}
    evaluator.reset()
    evaluator.process(reference.inputs, [nothing] * len(reference.inputs))
    assert np.isnan(evaluator.evaluate()["boundary"]["AP"])
