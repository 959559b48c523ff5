"""What the evaluation of COCO instances refuses: predictions, ground truth and files, each named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mask2former.errors import DatasetError, InputError
from mask2former.evaluation import COCOEvaluator, evaluate_coco
from mask2former.structures import Boxes, Instances, MetadataCatalog
from tests.evaluation.coco_scenes import (
    CATEGORIES,
    SIZE,
    register,
    scene,
)


def instances_with(**changes: Any) -> Instances:
    fields = {
        "scores": torch.tensor([0.5]),
        "pred_classes": torch.tensor([0]),
        "pred_masks": torch.ones((1, *SIZE), dtype=torch.bool),
    }
    fields.update(changes)
    return Instances(SIZE, **{k: v for k, v in fields.items() if v is not None})


BAD_INSTANCES = {
    "class": ({"pred_classes": torch.tensor([3])}, r"image 7: classes \[3\] are no things"),
    "score": ({"scores": torch.tensor([float("nan")])}, "image 7: a score is not finite: nan"),
    "size": ({"pred_masks": torch.ones((1, 4, 5), dtype=torch.bool)}, r"image 7: size .* is \(4, 5\), .*\(40, 53\)"),
    "no masks": ({"pred_masks": None}, r"image 7: instances lack \['pred_masks'\]"),
}


@pytest.mark.parametrize("case", BAD_INSTANCES)
def test_coco_evaluator_refuses_instances(case: str, tmp_path: Path, dataset_name: str) -> None:
    changes, message = BAD_INSTANCES[case]
    register(dataset_name, tmp_path, scene(0)[0])
    with pytest.raises(InputError, match=message):
        COCOEvaluator(dataset_name).process([{"image_id": 7}], [{"instances": instances_with(**changes)}])


def test_coco_evaluator_refuses_images(tmp_path: Path, dataset_name: str) -> None:
    register(dataset_name, tmp_path, scene(0)[0])
    evaluator = COCOEvaluator(dataset_name)
    output = {"instances": instances_with(pred_boxes=Boxes(torch.tensor([[0.0, 0.0, 5.0, 5.0]])))}
    with pytest.raises(InputError, match=r"image id 99 is not among the 3 of .*instances.json"):
        evaluator.process([{"image_id": 99}], [output])
    with pytest.raises(InputError, match="image 7: no 'instances'"):
        evaluator.process([{"image_id": 7}], [{}])
    evaluator.process([{"image_id": "7"}], [output])
    with pytest.raises(InputError, match=r"no prediction for 2 of the 3 images .*\[3, 12\]"):
        evaluator.evaluate()
    evaluator.process([{"image_id": 7}], [output])
    with pytest.raises(InputError, match=r"image id 7 of .* was predicted twice"):
        evaluator.evaluate()


def test_coco_evaluator_refuses_metadata(tmp_path: Path, dataset_name: str) -> None:
    with pytest.raises(DatasetError, match="has no metadata 'json_file'"):
        COCOEvaluator(dataset_name)
    path = register(dataset_name + "_", tmp_path, {**scene(0)[0], "categories": CATEGORIES[:2], "annotations": []})
    with pytest.raises(DatasetError, match=rf"{path.name}: no categories with ids \[11\]"):
        COCOEvaluator(dataset_name + "_")
    MetadataCatalog.remove(dataset_name + "_")
    with pytest.raises(ValueError, match="tasks must be some of"):
        COCOEvaluator(dataset_name, tasks=())


ANNOTATION = {
    "id": 41,
    "image_id": 7,
    "category_id": 2,
    "iscrowd": 0,
    "bbox": [0, 0, 1, 1],
    "area": 1,
    "segmentation": [[0, 0, 1, 0, 1, 1]],
}
BAD_ANNOTATIONS = {
    "image": ({"image_id": 8}, "annotation 41: belongs to image 8, which is not listed"),
    "category": ({"category_id": 3}, "annotation 41: category id 3 has no class"),
    "two points": ({"segmentation": [[0, 0, 1, 1]]}, "annotation 41: a polygon needs at least 3 points"),
    "odd": ({"segmentation": [[0, 0, 1, 1, 2, 2, 3]]}, "annotation 41: a polygon"),
    "text": ({"segmentation": [["a"] * 6]}, "annotation 41: a polygon"),
    "no polygon": ({"segmentation": []}, "annotation 41: segmentation holds no polygon"),
    "none": ({"segmentation": None}, "annotation 41 has no segmentation"),
    "size": ({"segmentation": {"size": [1, 1], "counts": "11"}}, r"annotation 41: RLE has size \[1, 1\]"),
    "sum": (
        {"segmentation": {"size": [40, 53], "counts": [5]}},
        "annotation 41: RLE counts sum to 5, expected 40 x 53",
    ),
    "counts": (
        {"segmentation": {"size": [40, 53], "counts": 5}},
        "annotation 41: RLE counts .* must be text or a list",
    ),
    "box": ({"bbox": [0, 0, 1]}, "annotation 41: bbox must be four finite numbers"),
    "negative": ({"bbox": [0, 0, 1, -1]}, "annotation 41: bbox has a negative"),
}


@pytest.mark.parametrize("case", BAD_ANNOTATIONS)
def test_coco_ground_truth_refuses(case: str, tmp_path: Path, dataset_name: str) -> None:
    changes, message = BAD_ANNOTATIONS[case]
    truth = scene(0)[0]
    truth["annotations"] = [{**ANNOTATION, **changes}]
    register(dataset_name, tmp_path, truth)
    with pytest.raises(DatasetError, match=rf"instances\.json: {message}"):
        COCOEvaluator(dataset_name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a valid JSON"),
        ("[]", "must hold a JSON object"),
        ('{"images": [], "annotations": [{"id": 1}], "categories": []}', "annotation 1: missing 'image_id'"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "image 1: missing 'height', 'width'"),
        (None, "file not found"),
    ],
)
def test_coco_ground_truth_refuses_files(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "gt.json").write_text(content)
    with pytest.raises(DatasetError, match=f"gt.json.*{message}"):
        evaluate_coco(tmp_path / "gt.json", tmp_path / "dt.json")


DETECTION = {"image_id": 7, "category_id": 2, "score": 0.5, "segmentation": [[0, 0, 9, 0, 9, 9]], "bbox": [0, 0, 9, 9]}
BAD_DETECTIONS = {
    "image": ({"image_id": 8}, r"entry 0 \(image 8\): the image is not among the 3"),
    "category": ({"category_id": 3}, r"entry 0 \(image 7\): category id 3 has no class"),
    "score": ({"score": "high"}, "score must be a finite number, found 'high'"),
    "infinite": ({"score": float("inf")}, "score must be a finite number"),
    "size": ({"segmentation": {"size": [5, 5], "counts": "1"}}, r"RLE has size \[5, 5\], .* \[40, 53\]"),
    "box": ({"bbox": [0, 0, 1, float("nan")]}, "bbox must be four finite numbers"),
}


@pytest.mark.parametrize("case", BAD_DETECTIONS)
def test_evaluate_coco_refuses_detections(case: str, tmp_path: Path, dataset_name: str) -> None:
    changes, message = BAD_DETECTIONS[case]
    truth_path = register(dataset_name, tmp_path, scene(0)[0])
    (tmp_path / "dt.json").write_text(json.dumps([{**DETECTION, **changes}]))
    with pytest.raises(InputError, match=f"dt.json.*{message}"):
        evaluate_coco(truth_path, tmp_path / "dt.json")


@pytest.mark.parametrize(
    ("content", "message"), [("{}", "expected a list"), ("[1]", "entry 0: .*expected an object"), ("[", "JSON")]
)
def test_evaluate_coco_refuses_files(content: str, message: str, tmp_path: Path, dataset_name: str) -> None:
    truth_path = register(dataset_name, tmp_path, scene(0)[0])
    (tmp_path / "dt.json").write_text(content)
    with pytest.raises(InputError, match=f"dt.json.*{message}"):
        evaluate_coco(truth_path, tmp_path / "dt.json")
