"""Average precision against pycocotools itself, on random scenes and at the edges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former.evaluation import COCOEvaluator, evaluate_coco
from mask2former.evaluation.average_precision import compute_average_precision
from mask2former.evaluation.coco_ground_truth import CocoGroundTruth
from mask2former.structures import BitMasks, Instances, MetadataCatalog, bitmasks_to_rles
from tests.evaluation.coco_scenes import (
    CATEGORIES,
    KEYS,
    SIZE,
    process_all,
    pycocotools_by_hand,
    random_masks,
    register,
    scene,
)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_coco_evaluator_equals_pycocotools(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    truth, predictions = scene(seed)
    if not any(len(instances) for instances in predictions):
        return
    name = "coco_property"
    register(name, tmp_path_factory.mktemp("coco"), truth)
    try:
        evaluator = COCOEvaluator(name)
        process_all(evaluator, truth, predictions)
        results = evaluator.evaluate()
    finally:
        MetadataCatalog.remove(name)
    assert results is not None
    for task in ("segm", "bbox"):
        actual = [results[task][key] for key in KEYS]
        np.testing.assert_array_equal(actual, pycocotools_by_hand(truth, predictions, task))


def encoded(truth: dict[str, Any], predictions: list[Instances], folder: Path, name: str) -> list[dict[str, Any]]:
    register(name, folder, truth)
    evaluator = COCOEvaluator(name, folder)
    process_all(evaluator, truth, predictions)
    evaluator.evaluate()
    MetadataCatalog.remove(name)
    return json.loads((folder / "coco_instances_results.json").read_text())


def test_coco_evaluator_encodes_the_best_100_of_a_class_and_image(tmp_path: Path, dataset_name: str) -> None:
    truth, _ = scene(1)
    rng = np.random.default_rng(0)
    masks = torch.from_numpy(random_masks(rng, 130))
    scores = torch.from_numpy(rng.integers(0, 40, size=130) / 40)
    classes = torch.tensor([0] * 115 + [1] * 15)
    many = Instances(SIZE, scores=scores, pred_classes=classes, pred_masks=masks)
    none = many[torch.zeros(130, dtype=torch.bool)]
    predictions = [many, none, none]
    detections = encoded(truth, predictions, tmp_path, dataset_name)
    assert len(detections) == 100 + 15
    checked = CocoGroundTruth("truth", ("segm",), content=truth)
    summary = compute_average_precision(checked, detections, iou_type="segm").summary
    np.testing.assert_array_equal(list(summary.values()), pycocotools_by_hand(truth, predictions, "segm"))


def test_coco_evaluator_takes_boxes_bitmasks_and_probabilities(tmp_path: Path, dataset_name: str) -> None:
    truth, predictions = scene(4)
    register(dataset_name, tmp_path, truth)
    plain, other = COCOEvaluator(dataset_name), COCOEvaluator(dataset_name)
    process_all(plain, truth, predictions)
    converted = []
    for instances in predictions:
        masks = BitMasks(instances.pred_masks)
        fields = {"scores": instances.scores, "pred_classes": instances.pred_classes}
        converted.append(Instances(SIZE, **fields, pred_masks=masks, pred_boxes=masks.get_bounding_boxes()))
    converted[0].set("pred_masks", predictions[0].pred_masks.float() * 0.9)
    process_all(other, truth, converted)
    assert json.dumps(plain.evaluate()) == json.dumps(other.evaluate())


def test_coco_evaluator_of_boxes_alone_needs_no_masks(tmp_path: Path, dataset_name: str) -> None:
    truth, predictions = scene(4)
    register(dataset_name, tmp_path, truth)
    boxes_only = [
        Instances(
            SIZE,
            scores=p.scores,
            pred_classes=p.pred_classes,
            pred_boxes=BitMasks(p.pred_masks).get_bounding_boxes(),
        )
        for p in predictions
    ]
    evaluator = COCOEvaluator(dataset_name, tasks=("bbox",))
    process_all(evaluator, truth, boxes_only)
    results = evaluator.evaluate()
    assert results is not None
    assert list(results) == ["bbox"]
    actual = [results["bbox"][key] for key in KEYS]
    np.testing.assert_array_equal(actual, pycocotools_by_hand(truth, predictions, "bbox"))


def test_coco_evaluator_without_detections_is_nan(tmp_path: Path, dataset_name: str) -> None:
    truth, predictions = scene(2)
    register(dataset_name, tmp_path, truth)
    evaluator = COCOEvaluator(dataset_name)
    process_all(evaluator, truth, [p[torch.zeros(len(p), dtype=torch.bool)] for p in predictions])
    results = evaluator.evaluate()
    assert results is not None
    for task in ("segm", "bbox"):
        assert list(results[task]) == KEYS
        assert np.isnan(list(results[task].values())).all()


def test_coco_evaluator_without_ground_truth_is_nan(tmp_path: Path, dataset_name: str) -> None:
    truth, predictions = scene(2)
    truth["annotations"] = []
    register(dataset_name, tmp_path, truth)
    evaluator = COCOEvaluator(dataset_name)
    process_all(evaluator, truth, predictions)
    results = evaluator.evaluate()
    assert results is not None
    assert set(results["segm"]) == {*KEYS, "AP-cat", "AP-dog", "AP-owl"}
    assert np.isnan(list(results["segm"].values())).all()


def test_coco_evaluator_names_one_category_by_ap_alone(tmp_path: Path) -> None:
    truth, _ = scene(5)
    truth["categories"] = CATEGORIES[:1]
    for annotation in truth["annotations"]:
        annotation.update(category_id=2, iscrowd=0)
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "dt.json").write_text(json.dumps([{**a, "score": 0.5} for a in truth["annotations"]]))
    assert list(evaluate_coco(tmp_path / "gt.json", tmp_path / "dt.json")["segm"]) == KEYS


@pytest.mark.parametrize(
    ("mapping", "names", "expected"),
    [
        ({2: 0, 5: 1, 11: 2}, ["a", "b", "c"], ["AP-a", "AP-b", "AP-c"]),
        ({2: 1, 5: 3, 11: 0}, ["a", "b", "c"], ["AP-a", "AP-b", "AP-c"]),  # things alone, ids with gaps
        ({2: 1, 5: 3, 11: 0}, ["a", "b", "c", "d"], ["AP-a", "AP-b", "AP-d"]),  # all classes
        ({2: 1, 5: 3, 11: 0}, None, ["AP-owl", "AP-cat", "AP-dog"]),
    ],
)
def test_coco_evaluator_names_classes_by_contiguous_id(
    tmp_path: Path, dataset_name: str, mapping: dict[int, int], names: list[str] | None, expected: list[str]
) -> None:
    truth, predictions = scene(6)
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    MetadataCatalog.get(dataset_name).set(
        json_file=str(tmp_path / "gt.json"), thing_dataset_id_to_contiguous_id=mapping, thing_classes=names
    )
    for instances in predictions:
        instances.pred_classes = torch.tensor(list(mapping.values()))[instances.pred_classes]
    evaluator = COCOEvaluator(dataset_name, tasks=("segm",))
    process_all(evaluator, truth, predictions)
    results = evaluator.evaluate()
    assert results is not None
    assert list(results["segm"])[6:] == expected


def test_evaluate_coco_reads_polygons_uncompressed_rle_and_makes_boxes_and_areas(tmp_path: Path) -> None:
    image = {"id": 1, "file_name": "a.jpg", "height": 10, "width": 10}
    square = [[2.0, 2.0, 6.0, 2.0, 6.0, 6.0, 2.0, 6.0]]
    mask = np.zeros((10, 10), dtype=bool)
    mask[2:6, 2:6] = True
    counts = np.diff([0, *(np.flatnonzero(np.diff(mask.T.reshape(-1).astype(int))) + 1), 100]).tolist()
    truth = {
        "images": [image],
        "categories": CATEGORIES[:1],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 2, "segmentation": square, "bbox": [2, 2, 4, 4]},
        ],
    }
    detection = {"image_id": 1, "category_id": 2, "score": 1, "segmentation": {"size": [10, 10], "counts": counts}}
    compressed = {**detection, "segmentation": bitmasks_to_rles(mask[None])[0]}
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    for entry in (detection, compressed):
        (tmp_path / "dt.json").write_text(json.dumps([entry]))
        results = evaluate_coco(tmp_path / "gt.json", tmp_path / "dt.json")
        assert results["segm"]["AP"] == results["segm"]["APs"] == results["bbox"]["AP"] == pytest.approx(100.0)
