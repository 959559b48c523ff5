"""Images per second and core that training's mapper prepares, beside the same pipeline written in the obvious way.

    python benchmarks/data_loading.py [--images 8] [--runs 3] [--passes 3]

The obvious pipeline opens files with Pillow, makes a full-size mask of every object and moves the masks one by one.
Both get the same random parameters, take turns image by image in one process with one thread, and must agree in every
pixel, mask, class and box before a time is printed. `--images` pictures of 480×640 are drawn: photographs as JPEG,
COCO's polygons, panoptic PNGs of 12 to 20 segments, label PNGs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from harness import record as keep_results

from mask2former import get_cfg
from mask2former.data import DatasetMapper
from mask2former.data.loader import DatasetFromList, MappedDataset
from mask2former.data.samplers import sample_generator
from mask2former.data.transforms import (
    CropTransform,
    HFlipTransform,
    PadTransform,
    ResizeTransform,
    SSDColorTransform,
    Transform,
    TransformList,
)

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RECIPES = {
    "instance": "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml",
    "panoptic": "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
    "semantic": "ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml",
}
HEIGHT, WIDTH = 480, 640
VOID = -1
Record = dict[str, Any]
Targets = tuple[np.ndarray, torch.Tensor, torch.Tensor, torch.Tensor]  # image, classes, masks, boxes


# ---------------------------------------------------------------------------------------------------------------
# Pictures


def draw_records(folder: Path, *, num_images: int) -> list[Record]:
    """Dataset dicts of ``num_images`` pictures written to ``folder``, with all that the three recipes read."""
    rng = np.random.default_rng(0)
    return [draw_record(folder, index, rng) for index in range(num_images)]


def draw_record(folder: Path, index: int, rng: np.random.Generator) -> Record:
    ids = draw_segments(rng, num_segments=int(rng.integers(12, 21)))
    segment_ids = rng.choice(256**3 - 1, size=ids.max() + 1, replace=False) + 1
    classes = rng.integers(133, size=len(segment_ids))
    colors = rng.integers(30, 220, size=(len(segment_ids), 3))
    grain = rng.normal(0, 12, (HEIGHT // 2, WIDTH // 2, 3)).astype(np.float32)
    photograph = colors[ids] + cv2.resize(grain, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    stem = str(folder / f"{index:03d}")
    Image.fromarray(photograph.clip(0, 255).astype(np.uint8)).save(f"{stem}.jpg", quality=92)
    coded = segment_ids[ids]
    Image.fromarray(np.stack([coded % 256, coded // 256 % 256, coded // 256**2], -1).astype(np.uint8)).save(
        f"{stem}_panoptic.png"
    )
    labels = (classes % 150).astype(np.uint8)[ids]
    labels[rng.random((HEIGHT // 8, WIDTH // 8)).repeat(8, 0).repeat(8, 1) < 0.03] = 255
    Image.fromarray(labels).save(f"{stem}_labels.png")
    return {
        "file_name": f"{stem}.jpg",
        "height": HEIGHT,
        "width": WIDTH,
        "image_id": index,
        "pan_seg_file_name": f"{stem}_panoptic.png",
        "segments_info": [
            {"id": int(s), "category_id": int(c), "iscrowd": 0} for s, c in zip(segment_ids, classes, strict=True)
        ],
        "sem_seg_file_name": f"{stem}_labels.png",
        "annotations": [draw_object(rng) for _ in range(int(rng.integers(4, 12)))],
    }


def draw_segments(rng: np.random.Generator, *, num_segments: int) -> np.ndarray:
    """Segment of every pixel: the nearest of some random points, by a distance that bends the borders."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    wave = 12 * np.sin(rows / 17) + 9 * np.cos(columns / 23)
    points = rng.random((num_segments, 2)) * (HEIGHT, WIDTH)
    weights = rng.uniform(0.6, 1.6, num_segments)
    distances = [w * np.hypot(rows - y + wave, columns - x - wave) for w, (y, x) in zip(weights, points, strict=True)]
    return np.argmin(distances, axis=0)


def draw_object(rng: np.random.Generator) -> Record:
    """An annotation of one or two polygons of 12 to 60 points; every twentieth is a run-length code."""
    polygons = []
    for _ in range(1 + (rng.random() < 0.15)):
        num_points = int(rng.integers(12, 61))
        angles = np.sort(rng.random(num_points)) * 2 * np.pi
        radii = np.exp(rng.uniform(np.log(10), np.log(180))) * rng.uniform(0.7, 1.0, num_points)
        center = rng.random(2) * (WIDTH, HEIGHT)
        points = center + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        polygons.append(points.clip(0, (WIDTH, HEIGHT)).round(2).reshape(-1).tolist())
    segmentation: Any = polygons
    if rng.random() < 0.05:
        code = coco_mask.merge(coco_mask.frPyObjects(polygons, HEIGHT, WIDTH))
        segmentation = {"size": code["size"], "counts": code["counts"].decode("ascii")}
    return {"category_id": int(rng.integers(80)), "iscrowd": 0, "segmentation": segmentation}


# ---------------------------------------------------------------------------------------------------------------
# The obvious pipeline


def read_plainly(mapper: DatasetMapper, record: Record, rng: np.random.Generator) -> Targets:
    """What ``mapper`` makes of ``record``, one full mask after the other."""
    image = np.asarray(Image.open(record["file_name"]).convert("RGB"))
    target = mapper.preset.target
    if target == "semantic":
        labels = np.asarray(Image.open(record["sem_seg_file_name"]))
        check = [c for c in np.unique(labels) if c != 255]
        assert all(c < 150 for c in check)
    transform = flatten(mapper.augmentations.sample(rng, image.shape[:2], None))
    if target == "semantic":
        labels = move(labels, transform, resampling=Image.Resampling.NEAREST, fill=255)
        classes = [int(c) for c in np.unique(labels) if c != 255]
        masks = [labels == c for c in classes]
    elif target == "panoptic":
        rgb = np.asarray(Image.open(record["pan_seg_file_name"])).astype(np.int32)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 256**2 * rgb[..., 2]
        segments = [s for s in record["segments_info"] if not s["iscrowd"]]
        classes = [s["category_id"] for s in segments]
        masks = [move_mask(ids == s["id"], transform) for s in segments]
    else:
        objects = [a for a in record["annotations"] if not a["iscrowd"]]
        classes = [a["category_id"] for a in objects]
        masks = [object_mask(a["segmentation"], transform, image.shape[:2]) for a in objects]
    image = move(image, transform, resampling=Image.Resampling.BILINEAR, fill=128)
    tensors = [torch.from_numpy(np.ascontiguousarray(mask.copy())) for mask in masks]
    stacked = torch.stack(tensors) if tensors else torch.zeros((0, *image.shape[:2]), dtype=torch.bool)
    boxes = torch.stack([box_around(mask) for mask in stacked]) if tensors else torch.zeros((0, 4))
    kept = torch.ones(len(stacked), dtype=torch.bool)
    if target == "instance" and not mapper.preset.keep_empty:
        kept = torch.tensor([bool(mask.any()) for mask in stacked], dtype=torch.bool)
    picture = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return picture, torch.tensor(classes, dtype=torch.int64)[kept], stacked[kept], boxes[kept]


def flatten(transform: Transform) -> list[Transform]:
    if isinstance(transform, TransformList):
        return [part for inner in transform.transforms for part in flatten(inner)]
    return [transform]


def move_mask(mask: np.ndarray, transforms: list[Transform]) -> np.ndarray:
    return move(mask.astype(np.uint8), transforms, resampling=Image.Resampling.NEAREST, fill=0).astype(bool)


def move(array: np.ndarray, transforms: list[Transform], *, resampling: Image.Resampling, fill: int) -> np.ndarray:
    for t in transforms:
        if isinstance(t, HFlipTransform):
            array = np.flip(array, axis=1)
        elif isinstance(t, ResizeTransform):
            array = np.asarray(Image.fromarray(array).resize((t.new_width, t.new_height), resampling))
        elif isinstance(t, CropTransform):
            array = array[t.top : t.top + t.height, t.left : t.left + t.width]
        elif isinstance(t, PadTransform):
            sides = [(t.top, t.bottom), (t.left, t.right)] + [(0, 0)] * (array.ndim - 2)
            array = np.pad(array, sides, mode="constant", constant_values=fill)
        elif isinstance(t, SSDColorTransform) and array.ndim == 3:
            array = change_colors(array, t)
    return array


def change_colors(image: np.ndarray, t: SSDColorTransform) -> np.ndarray:
    def line(image: np.ndarray, factor: float = 1.0, offset: float = 0.0) -> np.ndarray:
        return np.clip(image.astype(np.float32) * np.float32(factor) + np.float32(offset), 0, 255).astype(np.uint8)

    if t.brightness is not None:
        image = line(image, offset=t.brightness)
    if t.contrast is not None and t.contrast_first:
        image = line(image, t.contrast)
    if t.saturation is not None:
        hsv = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2HSV)
        hsv[:, :, 1] = line(hsv[:, :, 1], t.saturation)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if t.hue is not None:
        hsv = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2HSV)
        hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + t.hue) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if t.contrast is not None and not t.contrast_first:
        image = line(image, t.contrast)
    return image


def object_mask(segmentation: Any, transforms: list[Transform], size: tuple[int, int]) -> np.ndarray:
    if isinstance(segmentation, dict):
        return move_mask(coco_mask.decode(segmentation), transforms)
    for t in transforms:
        size = t.output_size(size)
    polygons = []
    for polygon in segmentation:
        points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        for t in transforms:
            points = t.apply_coords(points)
        polygons.append(points.reshape(-1).tolist())
    return coco_mask.decode(coco_mask.frPyObjects(polygons, *size)).any(axis=2)


def box_around(mask: torch.Tensor) -> torch.Tensor:
    columns, rows = torch.where(mask.any(dim=0))[0], torch.where(mask.any(dim=1))[0]
    if not len(columns):
        return torch.zeros(4)
    return torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=torch.float32)


# ---------------------------------------------------------------------------------------------------------------
# Comparison


def build_mapper(recipe: str) -> DatasetMapper:
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / RECIPES[recipe]))
    cfg.DATASETS.TRAIN = []  # whose metadata this benchmark's pictures do not have
    return DatasetMapper.from_config(cfg)


def check_equal(sample: Record, expected: Targets) -> None:
    """Stop unless picture, classes, masks and boxes are the same to the last bit."""
    instances = sample["instances"]
    found = (sample["image"], instances.gt_classes, instances.gt_masks, instances.gt_boxes.tensor)
    for name, ours, theirs in zip(("image", "classes", "masks", "boxes"), found, expected, strict=True):
        if ours.dtype != theirs.dtype or not torch.equal(ours, theirs):
            raise SystemExit(f"the two pipelines differ in {name} of {sample['file_name']}")


def measure(recipe: str, records: list[Record], *, runs: int, passes: int) -> dict[str, Any]:
    """Images/s of both pipelines on one core, medians over ``runs``; each image ``passes`` times a run."""
    mapper = build_mapper(recipe)
    dataset = MappedDataset(DatasetFromList(records), mapper, seed=0)
    draws = [(position, position % len(records)) for position in range(passes * len(records))]
    for draw in draws:  # which also warms both up
        check_equal(dataset[draw], read_plainly(mapper, records[draw[1]], sample_generator(0, draw[0])))
    ours, plain = [], []
    for _ in range(runs):
        seconds = [0.0, 0.0]
        for draw in draws:
            seconds[0] += seconds_of(lambda draw=draw: dataset[draw])
            seconds[1] += seconds_of(
                lambda draw=draw: read_plainly(mapper, records[draw[1]], sample_generator(0, draw[0]))
            )
        ours.append(len(draws) / seconds[0])
        plain.append(len(draws) / seconds[1])
    return {
        "recipe": RECIPES[recipe],
        "images_per_second": round(statistics.median(ours), 1),
        "plain_images_per_second": round(statistics.median(plain), 1),
        "ratio": round(statistics.median(o / p for o, p in zip(ours, plain, strict=True)), 2),
    }


def seconds_of(function: Callable[[], Any]) -> float:
    start = time.process_time()  # of this process: what else the machine does is not counted
    function()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--passes", type=int, default=3, help="draws of each image in a run")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--no-record", action="store_true", help="print the results, write no line about them")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        records = draw_records(Path(folder), num_images=args.images)
        for recipe in args.recipes:
            results[recipe] = result = measure(recipe, records, runs=args.runs, passes=args.passes)
            print(
                f"{recipe:9} {result['images_per_second']:7.1f} images/s a core, "
                f"plainly {result['plain_images_per_second']:7.1f}: {result['ratio']:.2f} times"
            )
    if not args.no_record:
        keep_results("data_loading", {**results, "image": [HEIGHT, WIDTH], "images": args.images, "runs": args.runs})


if __name__ == "__main__":
    main()
