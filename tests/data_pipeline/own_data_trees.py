"""Tiny data sets of users, written to disk in each format they come in: the same scenes of 24 x 32 pixels."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mask2former.structures import bitmasks_to_rles, id_to_rgb

HEIGHT, WIDTH = 24, 32
SKY, BOX, DISC = 3, 7, 20  # ids with gaps


def write_image(path: Path, *, size: tuple[int, int] = (HEIGHT, WIDTH), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).save(path)
    return path


def write_mask(path: Path, labels: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(labels)
    if mode == "P":
        picture = Image.fromarray(labels).convert("P")
        picture.putdata(labels.reshape(-1).tolist())
        picture.putpalette([255 - value // 3 for value in range(768)])
    picture.save(path)
    return path


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def scene(number: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Segment ids (H, W) and segments: sky, and in even scenes a box and two discs."""
    ids = np.zeros((HEIGHT, WIDTH), np.int32)
    ids[:12] = 300
    segments = [{"id": 300, "category_id": SKY}]
    if number % 2 == 0:
        ids[8:20, 2:10], ids[10:16, 14:20], ids[14:22, 22:30] = 1, 2, 70_000
        segments += [{"id": 1, "category_id": BOX}, {"id": 2, "category_id": DISC}]
        segments.append({"id": 70_000, "category_id": DISC})
    return ids, segments


def labels_of(number: int) -> np.ndarray:
    ids, segments = scene(number)
    labels = np.full(ids.shape, 255, np.uint8)
    for segment in segments:
        labels[ids == segment["id"]] = segment["category_id"]
    return labels


def write_png_tree(root: Path, *, num_train: int = 2, num_valid: int = 1, valid: str = "valid") -> Path:
    for part, numbers in (("train", range(num_train)), (valid, range(100, 100 + num_valid))):
        for number in numbers:
            write_image(root / part / "images" / f"{number}.jpg", seed=number)
            write_mask(root / part / "masks" / f"{number}.png", labels_of(number))
    return root


def write_coco_instances(
    root: Path, *, parts: tuple[str, ...] = ("train2017", "val2017"), num: int = 2, boxes: bool = False
) -> Path:
    for offset, part in enumerate(parts):
        images, annotations = [], []
        for number in range(10 * offset, 10 * offset + num):
            write_image(root / part / f"{number}.jpg", seed=number)
            images.append({"id": number + 50, "file_name": f"{number}.jpg", "height": HEIGHT, "width": WIDTH})
            ids, segments = scene(number)
            for segment in segments[1:]:
                mask = ids == segment["id"]
                rle = bitmasks_to_rles(mask[None])[0]
                entry = {"id": len(annotations) + 1, "image_id": number + 50, "category_id": segment["category_id"]}
                annotations.append({**entry, "segmentation": rle, "iscrowd": 0})
                if boxes:
                    rows, columns = np.nonzero(mask)
                    sides = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
                    annotations[-1]["bbox"] = [int(side) for side in sides]
        categories = [{"id": DISC, "name": "disc"}, {"id": BOX, "name": "box"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_json(root / "annotations" / f"instances_{part}.json", content)
    return root


def write_coco_panoptic(root: Path, *, parts: tuple[str, ...] = ("train", "valid"), num: int = 2) -> Path:
    for offset, part in enumerate(parts):
        images, annotations = [], []
        for number in range(10 * offset, 10 * offset + num):
            write_image(root / part / f"{number}.jpg", seed=number)
            images.append({"id": number, "file_name": f"{number}.jpg", "height": HEIGHT, "width": WIDTH})
            ids, segments = scene(number)
            png = root / f"panoptic_{part}" / f"{number}.png"
            png.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(id_to_rgb(ids)).save(png)
            annotations.append({"image_id": number, "file_name": png.name, "segments_info": segments})
        names = {SKY: "sky", BOX: "box", DISC: "disc"}
        categories = [{"id": i, "name": name, "isthing": int(i != SKY)} for i, name in names.items()]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_json(root / "annotations" / f"panoptic_{part}.json", content)
    return root


def encode_mask(mask: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def labelme_shapes() -> list[dict[str, Any]]:
    """One of each kind; the two parts of the group are one object."""
    return [
        {"label": "box", "points": [[2, 2], [10, 8]], "shape_type": "rectangle"},
        {"label": "disc", "points": [[20, 12], [24, 12]], "shape_type": "circle", "group_id": None},
        {"label": "leaf", "points": [[1, 14], [6, 14], [3, 20]], "shape_type": "polygon", "group_id": 1},
        {"label": "leaf", "points": [[8, 14], [12, 14], [10, 20]], "shape_type": "polygon", "group_id": 1},
        {"label": "box", "points": [[26, 1], [29, 4]], "shape_type": "mask", "mask": encode_mask(np.ones((4, 4)))},
        {"label": "box", "points": [[1, 1], [5, 5]], "shape_type": "line"},
        {"label": "__ignore__", "points": [[1, 1], [5, 1], [5, 5]], "shape_type": "polygon"},
    ]


def write_labelme(root: Path, *, num: int = 3) -> Path:
    """All images but the first hold no object."""
    for number in range(num):
        write_image(root / f"{number}.jpg", seed=number)
        shapes = labelme_shapes() if number == 0 else []
        content = {"version": "5.4.1", "shapes": shapes, "imagePath": f"{number}.jpg", "imageData": None}
        write_json(root / f"{number}.json", {**content, "imageHeight": HEIGHT, "imageWidth": WIDTH})
    return root
