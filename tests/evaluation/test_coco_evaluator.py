"""Average precision against pycocotools itself, on random scenes and at the edges; what is refused."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask2former.errors import DatasetError, InputError
from mask2former.evaluation import COCOEvaluator, evaluate_coco
from mask2former.evaluation.average_precision import compute_average_precision
from mask2former.evaluation.coco_ground_truth import CocoGroundTruth
from mask2former.structures import BitMasks, Boxes, Instances, MetadataCatalog, bitmasks_to_rles

SIZE = (40, 53)
CATEGORIES = [{"id": 2, "name": "cat"}, {"id": 5, "name": "dog"}, {"id": 11, "name": "owl"}]
CONTIGUOUS = {2: 0, 5: 1, 11: 2}
KEYS = ["AP", "AP50", "AP75", "APs", "APm", "APl"]


def random_masks(rng: np.random.Generator, count: int) -> np.ndarray:
    masks = np.zeros((count, *SIZE), dtype=bool)
    for mask in masks:
        y, x = rng.integers(0, SIZE[0]), rng.integers(0, SIZE[1])
        mask[y : y + rng.integers(1, 40), x : x + rng.integers(1, 53)] = True
    return masks


def annotations_of(
    masks: np.ndarray, rng: np.random.Generator, *, image_id: int, first_id: int
) -> list[dict[str, Any]]:
    return [
        {
            "id": first_id + i,
            "image_id": image_id,
            "category_id": int(rng.choice(list(CONTIGUOUS))),
            "iscrowd": int(rng.random() < 0.15),
            "segmentation": rle,
            "bbox": coco_mask.toBbox(rle).tolist(),
            "area": int(coco_mask.area(rle)),
        }
        for i, rle in enumerate(bitmasks_to_rles(masks))
    ]


def predict(rng: np.random.Generator, true_masks: np.ndarray) -> Instances:
    """Shifted true masks, some twice, and some of nothing; scores with ties; one empty mask now and then."""
    shifted = np.stack([np.roll(m, rng.integers(-3, 4, size=2), axis=(0, 1)) for m in true_masks] * 2 or [])
    masks = np.concatenate([shifted, random_masks(rng, 2), np.zeros((1, *SIZE), dtype=bool)])
    masks = torch.from_numpy(masks[rng.random(len(masks)) < 0.8])
    count = len(masks)
    return Instances(
        SIZE,
        scores=torch.from_numpy(rng.integers(0, 6, size=count) / 7),
        pred_classes=torch.from_numpy(rng.integers(0, 3, size=count)),
        pred_masks=masks,
    )


def scene(seed: int) -> tuple[dict[str, Any], list[Instances]]:
    rng = np.random.default_rng(seed)
    images, annotations, predictions = [], [], []
    for image_id in (7, 3, 12):
        masks = random_masks(rng, int(rng.integers(1, 5)))
        images.append({"id": image_id, "file_name": f"{image_id}.jpg", "height": SIZE[0], "width": SIZE[1]})
        annotations += annotations_of(masks, rng, image_id=image_id, first_id=len(annotations) + 1)
        predictions.append(predict(rng, masks))
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}, predictions


def pycocotools_by_hand(truth: dict[str, Any], predictions: list[Instances], iou_type: str) -> list[float]:
    """COCO's own six numbers, detections prepared the plain way."""
    ids = list(CONTIGUOUS)
    detections = []
    for image, instances in zip(truth["images"], predictions):
        for mask, label, score in zip(instances.pred_masks, instances.pred_classes, instances.scores):
            rle = coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
            entry: dict[str, Any] = {"image_id": image["id"], "category_id": ids[label], "score": float(score)}
            entry |= {"segmentation": rle} if iou_type == "segm" else {"bbox": coco_mask.toBbox(rle).tolist()}
            detections.append(entry)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = json.loads(json.dumps(truth))
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(detections), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [100 * value if value >= 0 else float("nan") for value in evaluation.stats[:6]]


def register(name: str, folder: Path, truth: dict[str, Any]) -> Path:
    path = folder / "instances.json"
    path.write_text(json.dumps(truth))
    MetadataCatalog.get(name).set(
        json_file=str(path),
        thing_classes=[c["name"] for c in CATEGORIES],
        thing_dataset_id_to_contiguous_id=CONTIGUOUS,
    )
    return path


def process_all(evaluator: COCOEvaluator, truth: dict[str, Any], predictions: list[Instances]) -> None:
    inputs = [{"image_id": image["id"]} for image in truth["images"]]
    evaluator.process(inputs, [{"instances": instances} for instances in predictions])


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
    "image": ({"image_id": 8}, "annotation 41: image id 8 is not among the images"),
    "category": ({"category_id": 3}, "annotation 41: category id 3 is unknown"),
    "two points": ({"segmentation": [[0, 0, 1, 1]]}, "annotation 41: a polygon is .* at least 3 points"),
    "odd": ({"segmentation": [[0, 0, 1, 1, 2, 2, 3]]}, "annotation 41: a polygon"),
    "text": ({"segmentation": [["a"] * 6]}, "annotation 41: a polygon"),
    "no polygon": ({"segmentation": []}, "annotation 41: segmentation holds no polygon"),
    "none": ({"segmentation": None}, "annotation 41: segmentation must be polygons or RLE, found NoneType"),
    "size": ({"segmentation": {"size": [1, 1], "counts": "11"}}, r"annotation 41: RLE has size \[1, 1\]"),
    "sum": ({"segmentation": {"size": [40, 53], "counts": [5]}}, "annotation 41: RLE counts must be numbers that sum"),
    "counts": ({"segmentation": {"size": [40, 53], "counts": 5}}, "annotation 41: RLE counts must be text or a list"),
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
        ("[]", "expected a COCO instances json"),
        ('{"images": [], "annotations": [{"id": 1}], "categories": []}', "an annotation needs"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "entry 0 of 'images' needs"),
        (None, "cannot be read: No such file"),
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
    "category": ({"category_id": 3}, r"entry 0 \(image 7\): category id 3 is unknown"),
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


@pytest.mark.parametrize(("content", "message"), [("{}", "expected a list"), ("[1]", "entry 0 needs"), ("[", "JSON")])
def test_evaluate_coco_refuses_files(content: str, message: str, tmp_path: Path, dataset_name: str) -> None:
    truth_path = register(dataset_name, tmp_path, scene(0)[0])
    (tmp_path / "dt.json").write_text(content)
    with pytest.raises(InputError, match=f"dt.json.*{message}"):
        evaluate_coco(truth_path, tmp_path / "dt.json")
