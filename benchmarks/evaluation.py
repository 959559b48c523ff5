"""Evaluation time, panoptic beside panopticapi (where installed) and AP of both backends, on random scenes.

    python benchmarks/evaluation.py --images 20 --size 480 640

Both panoptic evaluations start from ground-truth PNG files. panopticapi needs predictions as PNG files too: writing
them is part of its time, as it is part of every evaluation with it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mask2former.evaluation import COCOPanopticEvaluator
from mask2former.evaluation.average_precision import compute_average_precision
from mask2former.evaluation.files import write_png
from mask2former.structures import MetadataCatalog, bitmasks_to_rles, id_to_rgb

NUM_CATEGORIES = 10
NAME = "evaluation_benchmark"


def random_segments(rng: np.random.Generator, size: tuple[int, int], ids: np.ndarray) -> tuple[np.ndarray, list[Any]]:
    height, width = size
    image = np.full(size, ids[0], dtype=np.int32)
    for segment_id in ids[1:]:
        y, x = rng.integers(0, height), rng.integers(0, width)
        image[y : y + rng.integers(8, height // 2), x : x + rng.integers(8, width // 2)] = segment_id
    segments = []
    for segment_id in np.unique(image).tolist():
        area = int((image == segment_id).sum())
        category = segment_id % NUM_CATEGORIES + 1
        segments.append({"id": segment_id, "category_id": category, "iscrowd": 0, "area": area})
    return image, segments


def write_truth(folder: Path, num_images: int, size: tuple[int, int]) -> tuple[list[Any], dict[str, Any]]:
    rng = np.random.default_rng(0)
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i + 1, "name": str(i), "isthing": 1} for i in range(NUM_CATEGORIES)],
    }
    predictions = []
    for image_id in range(num_images):
        ids, segments = random_segments(rng, size, rng.choice(np.arange(1, 1 << 24), size=20, replace=False))
        write_png(id_to_rgb(ids), folder / "truth" / f"{image_id}.png")
        content["images"].append({"id": image_id, "height": size[0], "width": size[1]})
        content["annotations"].append({"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": segments})
        predicted = np.roll(ids, (5, -7), axis=(0, 1))
        predictions.append((image_id, torch.from_numpy(predicted), segments))
    (folder / "truth.json").write_text(json.dumps(content))
    return predictions, content


def measure(label: str, function: Callable[[], float], num_images: int) -> None:
    function()
    started = time.perf_counter()
    value = function()
    seconds = time.perf_counter() - started
    print(f"{label:<34} {1e3 * seconds / num_images:8.2f} ms an image   result {value:.6f}")


def panoptic_quality_here(predictions: list[Any]) -> float:
    evaluator = COCOPanopticEvaluator(NAME)
    for image_id, ids, segments in predictions:
        evaluator.process([{"image_id": image_id}], [{"panoptic_seg": (ids, segments)}])
    results = evaluator.evaluate()
    assert results is not None
    return results["panoptic_seg"]["PQ"]


def panoptic_quality_of_panopticapi(folder: Path, predictions: list[Any], content: dict[str, Any]) -> float:
    from panopticapi.evaluation import pq_compute_single_core

    categories = {category["id"]: category for category in content["categories"]}
    pairs = []
    for annotation, (image_id, ids, segments) in zip(content["annotations"], predictions):
        write_png(id_to_rgb(ids.numpy()), folder / "predictions" / f"{image_id}.png")
        predicted = {"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": [dict(s) for s in segments]}
        pairs.append((annotation, predicted))
    statistics = pq_compute_single_core(0, pairs, str(folder / "truth"), str(folder / "predictions"), categories)
    return 100 * statistics.pq_average(categories, isthing=None)[0]["pq"]


def average_precision_scene(predictions: list[Any], content: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    annotations: list[Any] = []
    detections: list[Any] = []
    for image_id, ids, segments in predictions:
        masks = ids.numpy() == np.array([s["id"] for s in segments])[:, None, None]
        for i, (segment, rle) in enumerate(zip(segments, bitmasks_to_rles(masks))):
            entry = {"image_id": image_id, "category_id": segment["category_id"], "segmentation": rle}
            annotations.append({**entry, "id": len(annotations) + 1, "iscrowd": 0, "area": segment["area"]})
            detections += [{**entry, "score": 1 / (2 + i + j)} for j in range(5)]
    return {**content, "annotations": annotations}, detections


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        predictions, content = write_truth(folder, options.images, tuple(options.size))
        MetadataCatalog.get(NAME).set(panoptic_json=str(folder / "truth.json"), panoptic_root=str(folder / "truth"))
        measure("panoptic, this package", lambda: panoptic_quality_here(predictions), options.images)
        if importlib.util.find_spec("panopticapi"):
            theirs = lambda: panoptic_quality_of_panopticapi(folder, predictions, content)  # noqa: E731
            measure("panoptic, panopticapi", theirs, options.images)
        else:
            print("panopticapi is not installed: skipped")
        truth, detections = average_precision_scene(predictions, content)
        for backend in ("pycocotools", "faster-coco-eval"):
            if backend == "faster-coco-eval" and not importlib.util.find_spec("faster_coco_eval"):
                continue
            compute = lambda b=backend: compute_average_precision(  # noqa: E731
                truth, detections, iou_type="segm", backend=b
            ).summary["AP"]
            measure(f"mask AP, {backend}", compute, options.images)


if __name__ == "__main__":
    main()
