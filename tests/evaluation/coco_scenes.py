"""Random scenes as COCO instances, predictions that are nearly right, and what pycocotools says of them."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask2former.evaluation import COCOEvaluator
from mask2former.structures import Instances, MetadataCatalog, bitmasks_to_rles

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
