"""Evaluation: panoptic beside panopticapi (where installed), AP of masks and boxes beside pycocotools.

    python benchmarks/evaluation.py --images 200 --size 480 640

Results are compared before times are printed. panopticapi is not pinned by this package; `pip install --no-deps
panopticapi-lite` brings it. It reads predictions from PNG files: where they come from memory, as those of a model do,
writing them is part of its time, as of every evaluation with it; true segments come from files in either case. "One
core" counts the seconds of a processor that the process spends in all its threads, against panopticapi's single-core
function; "all cores" the time that passes, against its function with a process for each core.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from benchmarks.harness import core_seconds_of, print_ratio, record, take_turns
from mask2former.evaluation import COCOPanopticEvaluator, evaluate_panoptic
from mask2former.evaluation.average_precision import PrecisionTally
from mask2former.evaluation.coco_ground_truth import CocoGroundTruth
from mask2former.evaluation.coco_matching import IouType, match_image
from mask2former.files.atomic import write_json
from mask2former.structures import MetadataCatalog, bitmasks_to_rles, id_to_rgb

NAME = "evaluation_benchmark"
NUM_CATEGORIES = 80
NUM_SEGMENTS = 20
NUM_TRUE, NUM_DETECTIONS = 7, 100  # of an image; COCO's validation images have 7.3 objects on average


def random_ellipse(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Centre x, y, radii x, y, and degrees."""
    height, width = size
    return rng.uniform([0, 0, 4, 4, 0], [width, height, width / 4, height / 4, 180])


def drawn(ellipse: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, dtype=np.uint8)
    x, y, radius_x, radius_y, degrees = ellipse.tolist()
    cv2.ellipse(mask, ((x, y), (2 * radius_x, 2 * radius_y), degrees), (1.0,), thickness=-1)
    return mask.astype(bool)


def panoptic_scene(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Ids (H, W) and segments, as published: ids of three bytes."""
    ids = rng.choice(np.arange(1, 1 << 24), size=NUM_SEGMENTS, replace=False).tolist()
    image = np.full(size, ids[0], dtype=np.int32)
    for segment_id in ids[1:]:
        image[drawn(random_ellipse(rng, size), size)] = segment_id
    return image, [
        {"id": i, "category_id": i % NUM_CATEGORIES + 1, "iscrowd": 0, "area": int((image == i).sum())}
        for i in np.unique(image).tolist()
    ]


def write_map(ids: np.ndarray, path: Path) -> None:
    """Write ids by Pillow, which wrote COCO's own files: how a file is compressed decides how fast it is read."""
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(id_to_rgb(ids)).save(path)


def write_panoptic(folder: Path, num_images: int, size: tuple[int, int]) -> list[tuple[int, torch.Tensor, list[Any]]]:
    """Truth in files, predictions (the truth, shifted) in files and returned."""
    rng = np.random.default_rng(0)
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    predictions = []
    for image_id in range(num_images):
        ids, segments = panoptic_scene(rng, size)
        file_name = f"{image_id}.png"
        write_map(ids, folder / "truth" / file_name)
        truth.append({"image_id": image_id, "file_name": file_name, "segments_info": segments})
        shifted = np.roll(ids, (5, -7), axis=(0, 1))
        write_map(shifted, folder / "found" / file_name)
        own = [{"id": segment["id"], "category_id": segment["category_id"]} for segment in segments]
        found.append({"image_id": image_id, "file_name": file_name, "segments_info": own})
        predictions.append((image_id, torch.from_numpy(shifted), own))
    images = [{"id": i, "height": size[0], "width": size[1]} for i in range(num_images)]
    categories = [{"id": i + 1, "name": str(i), "isthing": i % 2} for i in range(NUM_CATEGORIES)]
    for name, entries in (("truth", truth), ("found", found)):
        content = {"images": images, "annotations": entries, "categories": categories}
        write_json(content, folder / f"{name}.json")
    return predictions


def quality_in_loop(predictions: list[tuple[int, torch.Tensor, list[Any]]]) -> dict[str, float]:
    evaluator = COCOPanopticEvaluator(NAME)
    for image_id, ids, segments in predictions:
        evaluator.process([{"image_id": image_id}], [{"panoptic_seg": (ids, segments)}])
    results = evaluator.evaluate()
    assert results is not None
    return results["panoptic_seg"]


def quality_of_files(folder: Path) -> dict[str, float]:
    paths = (folder / "truth.json", folder / "truth", folder / "found.json", folder / "found")
    return evaluate_panoptic(*paths)["panoptic_seg"]


def quality_by_panopticapi(folder: Path, *, all_cores: bool) -> dict[str, float]:
    from panopticapi import evaluation

    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = (json.loads((folder / f"{name}.json").read_text()) for name in ("truth", "found"))
        categories = {category["id"]: category for category in truth["categories"]}
        folders = str(folder / "truth"), str(folder / "found")
        pairs = list(zip(truth["annotations"], found["annotations"]))
        if all_cores:
            statistics = evaluation.pq_compute_multi_core(pairs, *folders, categories)
        else:
            statistics = evaluation.pq_compute_single_core(0, pairs, *folders, categories)
    quality = {}
    for suffix, is_thing in (("", None), ("_th", True), ("_st", False)):
        means = statistics.pq_average(categories, isthing=is_thing)[0]
        quality.update({f"{name}{suffix}": 100 * means[name.lower()] for name in ("PQ", "SQ", "RQ")})
    return quality


def write_predictions(folder: Path, predictions: list[tuple[int, torch.Tensor, list[Any]]]) -> None:
    """As users of panopticapi write them: by Pillow."""
    for image_id, ids, _ in predictions:
        write_map(ids.numpy(), folder / "found" / f"{image_id}.png")


def measure_panoptic(*, num_images: int, size: tuple[int, int], runs: int) -> dict[str, float]:
    """Milliseconds an image."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        predictions = write_panoptic(folder, num_images, size)
        MetadataCatalog.get(NAME).set(panoptic_json=str(folder / "truth.json"), panoptic_root=str(folder / "truth"))
        functions: dict[str, Callable[[], Any]] = {
            "in memory": lambda: quality_in_loop(predictions),
            "files": lambda: quality_of_files(folder),
        }
        by_all_cores = dict(functions)
        if importlib.util.find_spec("panopticapi"):
            functions |= {
                "panopticapi": lambda: quality_by_panopticapi(folder, all_cores=False),
                "writing of predictions": lambda: write_predictions(folder, predictions),
            }
            by_all_cores["panopticapi"] = lambda: quality_by_panopticapi(folder, all_cores=True)
            expected = quality_by_panopticapi(folder, all_cores=False)
            for actual in (quality_in_loop(predictions), quality_of_files(folder)):
                assert actual.keys() == expected.keys()
                assert all(abs(actual[key] - expected[key]) < 1e-9 for key in expected), (actual, expected)
        seconds = take_turns(functions, runs=runs, clock=core_seconds_of)
        passed = take_turns(by_all_cores, runs=runs)
        MetadataCatalog.remove(NAME)
    seconds |= {f"{label}, all cores": value for label, value in passed.items()}
    return {label: 1e3 * value / num_images for label, value in seconds.items()}


def instance_scene(num_images: int, size: tuple[int, int]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Objects of three categories an image; half of the detections are near one of them, in its category."""
    rng = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image_id in range(num_images):
        present = rng.choice(NUM_CATEGORIES, size=3, replace=False) + 1
        ellipses = np.stack([random_ellipse(rng, size) for _ in range(NUM_TRUE)])
        categories = rng.choice(present, size=NUM_TRUE)
        sources = rng.integers(NUM_TRUE, size=NUM_DETECTIONS)
        near = ellipses[sources] + rng.normal(size=(NUM_DETECTIONS, 5)) * [8, 8, 0, 0, 5]
        near[:, 2:4] *= np.exp(0.2 * rng.normal(size=(NUM_DETECTIONS, 2)))
        guessed = rng.integers(1, NUM_CATEGORIES + 1, size=NUM_DETECTIONS)
        labels = np.where(rng.random(NUM_DETECTIONS) < 0.5, categories[sources], guessed)
        masks = np.stack([drawn(ellipse, size) for ellipse in (*ellipses, *near)])
        rles = bitmasks_to_rles(masks)
        for i, (category, rle) in enumerate(zip([*categories.tolist(), *labels.tolist()], rles)):
            rows, columns = np.flatnonzero(masks[i].any(axis=1)), np.flatnonzero(masks[i].any(axis=0))
            box = [0.0] * 4
            if len(rows):
                box = [float(v) for v in (columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1)]
            entry = {"image_id": image_id, "category_id": category, "segmentation": rle, "bbox": box}
            if i < NUM_TRUE:
                area, is_crowd = int(masks[i].sum()), int(rng.random() < 0.02)
                annotations.append({**entry, "id": len(annotations) + 1, "iscrowd": is_crowd, "area": area})
            else:
                detections.append({**entry, "score": float(rng.random())})
    images = [{"id": i, "height": size[0], "width": size[1]} for i in range(num_images)]
    named = [{"id": i + 1, "name": str(i)} for i in range(NUM_CATEGORIES)]
    return {"images": images, "annotations": annotations, "categories": named}, detections


def precision_here(truth: dict[str, Any], detections: list[dict[str, Any]], task: IouType) -> np.ndarray:
    checked = CocoGroundTruth("truth", (task,), content=truth)
    found_of: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in checked.image_sizes}
    for detection in detections:
        found_of[detection["image_id"]].append(detection)
    tally = PrecisionTally()
    for image_id, found in found_of.items():
        tally.add_image(image_id, match_image(checked.annotations_of(image_id), found, iou_type=task))
    return tally.precision(sorted(checked.category_names))


def precision_by_pycocotools(truth: dict[str, Any], detections: list[dict[str, Any]], task: IouType) -> np.ndarray:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    fields = ("image_id", "category_id", "score", "bbox" if task == "bbox" else "segmentation")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        # It writes into what it is given.
        coco.dataset = {**truth, "annotations": [dict(annotation) for annotation in truth["annotations"]]}
        coco.createIndex()
        found = coco.loadRes([{field: detection[field] for field in fields} for detection in detections])
        evaluator = COCOeval(coco, found, task)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"][..., -1]


def measure_precision(task: IouType, *, num_images: int, size: tuple[int, int], runs: int) -> dict[str, float]:
    """Milliseconds an image."""
    truth, detections = instance_scene(num_images, size)
    ours, theirs = (function(truth, detections, task) for function in (precision_here, precision_by_pycocotools))
    assert np.array_equal(ours, theirs), f"{task}: precisions differ"
    functions = {
        "ours": lambda: precision_here(truth, detections, task),
        "pycocotools": lambda: precision_by_pycocotools(truth, detections, task),
    }
    return {label: 1e3 * value / num_images for label, value in take_turns(functions, runs=runs).items()}


def measure(*, num_images: int = 200, size: tuple[int, int] = (480, 640), runs: int = 3) -> dict[str, Any]:
    """Milliseconds an image of every evaluation; prints the ratios."""
    panoptic = measure_panoptic(num_images=num_images, size=size, runs=runs)
    print(f"panoptic quality, {num_images} images of {size[0]} x {size[1]}, {NUM_SEGMENTS} segments each")
    if "panopticapi" in panoptic:
        theirs, writing = panoptic["panopticapi"], panoptic["writing of predictions"]
        print_ratio(
            "one core: from memory, its files written", ours=panoptic["in memory"], theirs=theirs + writing, unit="ms"
        )
        print_ratio("one core: from memory, its files at hand", ours=panoptic["in memory"], theirs=theirs, unit="ms")
        print_ratio("one core: from files", ours=panoptic["files"], theirs=theirs, unit="ms")
        ours, theirs = panoptic["files, all cores"], panoptic["panopticapi, all cores"]
        print_ratio("all cores: from files", ours=ours, theirs=theirs, unit="ms")
    else:
        print(f"  ours: {panoptic}; panopticapi is not installed, there is no ratio")
    results: dict[str, Any] = {"num_images": num_images, "size": list(size), "panoptic": panoptic}
    print(f"precision, {num_images} images, {NUM_CATEGORIES} categories, {NUM_DETECTIONS} detections an image")
    for task in ("segm", "bbox"):
        results[task] = measure_precision(task, num_images=num_images, size=size, runs=runs)  # type: ignore[arg-type]
        print_ratio(task, ours=results[task]["ours"], theirs=results[task]["pycocotools"], unit="ms")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    record("evaluation", measure(num_images=options.images, size=tuple(options.size), runs=options.runs))


if __name__ == "__main__":
    main()
