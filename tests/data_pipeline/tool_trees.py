"""Tiny data sets laid out as labelling tools export them: in every image a cat with a hole in it, and two dogs.

Each function says the tool and the version whose layout it follows.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.data_pipeline import own_data_trees as trees

HEIGHT, WIDTH = trees.HEIGHT, trees.WIDTH
NAMES = ("cat", "dog")
CAT = [(2, 2), (14, 2), (14, 12), (2, 12)]
HOLE = [(5, 4), (10, 4), (10, 9), (5, 9)]
DOGS = [[(16, 3), (28, 3), (28, 8), (16, 8)], [(4, 14), (20, 14), (20, 22), (4, 22)]]


def rectangle_mask(corners: Sequence[tuple[int, int]]) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    (left, top), (right, bottom) = corners[0], corners[2]
    mask[top:bottom, left:right] = True
    return mask


CAT_MASK = rectangle_mask(CAT) & ~rectangle_mask(HOLE)
OBJECTS = [("cat", CAT_MASK), *(("dog", rectangle_mask(corners)) for corners in DOGS)]


def flat(points: Sequence[tuple[int, int]]) -> list[int]:
    return [value for point in points for value in point]


def yolo_lines() -> str:
    """ultralytics joins a hole to its outline by a way gone there and back (merge_multi_segment)."""
    cat = [*CAT, CAT[0], *HOLE, HOLE[0]]
    lines = []
    for class_id, points in ((0, cat), *((1, corners) for corners in DOGS)):
        lines.append(" ".join([str(class_id), *(f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in points)]))
    return "\n".join(lines) + "\n"


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def yolo_ultralytics(root: Path) -> Path:
    """ultralytics 8.3: coco8-seg.yaml, whose ``path`` is a folder of the machine where it was written."""
    for number, part in enumerate(("train", "train", "val")):
        trees.write_image(root / "images" / part / f"{number}.jpg", seed=number)
        _write(root / "labels" / part / f"{number}.txt", yolo_lines())
    _write(
        root / "coco8-seg.yaml",
        "path: ../datasets/coco8-seg # dataset root\ntrain: images/train\nval: images/val\n\n"
        "names:\n  0: cat\n  1: dog\n",
    )
    return root


def yolo_lists(root: Path) -> Path:
    """ultralytics 8.3: autosplit writes text files of the images of each part."""
    for number in range(3):
        trees.write_image(root / "images" / f"{number}.jpg", seed=number)
        _write(root / "labels" / f"{number}.txt", yolo_lines())
    _write(root / "autosplit_train.txt", "./images/0.jpg\n./images/1.jpg\n")
    _write(root / "autosplit_val.txt", "./images/2.jpg\n")
    _write(root / "data.yaml", "path: .\ntrain: autosplit_train.txt\nval: autosplit_val.txt\nnames: [cat, dog]\n")
    return root / "data.yaml"


def yolo_roboflow(root: Path) -> Path:
    """Roboflow, export "YOLOv8" of 2024: paths of data.yaml begin with ``../``."""
    for number, part in enumerate(("train", "train", "valid")):
        trees.write_image(root / part / "images" / f"{number}_jpg.rf.1a2b.jpg", seed=number)
        _write(root / part / "labels" / f"{number}_jpg.rf.1a2b.txt", yolo_lines())
    _write(
        root / "data.yaml",
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['cat', 'dog']\n\n"
        "roboflow:\n  workspace: mine\n  project: pets\n  version: 1\n",
    )
    return root


def png_base64(mask: np.ndarray) -> bytes:
    """As Supervisely saves a bitmap: one bit and a transparent palette."""
    picture = Image.fromarray(mask.astype(np.uint8)).convert("P")
    picture.putdata(mask.reshape(-1).astype(int).tolist())
    picture.putpalette([0, 0, 0, 255, 255, 255])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", transparency=0, optimize=0)
    return buffer.getvalue()


def supervisely(root: Path) -> Path:
    """Supervisely SDK 6.73: a project with the data sets train and val."""
    classes = [{"title": name, "shape": "any", "color": "#0F8A8A", "geometry_config": {}, "id": 1} for name in NAMES]
    trees.write_json(root / "meta.json", {"classes": classes, "tags": [], "projectType": "images"})
    bitmap = base64.b64encode(zlib.compress(png_base64(CAT_MASK[2:12, 2:14]))).decode()
    for number, part in enumerate(("train", "train", "val")):
        trees.write_image(root / part / "img" / f"{number}.jpg", seed=number)
        cat = (
            {"geometryType": "bitmap", "bitmap": {"data": bitmap, "origin": [2, 2]}}
            if number
            else {"geometryType": "polygon", "points": {"exterior": CAT, "interior": [HOLE]}}
        )
        dogs = [{"geometryType": "polygon", "points": {"exterior": d, "interior": []}} for d in DOGS]
        entries = zip(("cat", "dog", "dog"), (cat, *dogs), strict=True)
        objects = [{"id": i, "classTitle": name, "tags": [], **entry} for i, (name, entry) in enumerate(entries)]
        content = {"description": "", "tags": [], "size": {"height": HEIGHT, "width": WIDTH}, "objects": objects}
        trees.write_json(root / part / "ann" / f"{number}.jpg.json", content)
    return root


def coco_content(names: Sequence[str], *, first_id: int = 1, parent: str | None = None) -> dict[str, Any]:
    """Images of these file names with the scene in each; ``parent`` is a category before the classes, of no object."""
    counts: list[int] = []
    is_inside = CAT_MASK.T.reshape(-1)
    for value in np.split(is_inside, np.flatnonzero(np.diff(is_inside)) + 1):
        counts.append(len(value))
    rle = {"size": [HEIGHT, WIDTH], "counts": counts if not is_inside[0] else [0, *counts]}
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, len(names) + 1):
        for (name, mask), segmentation in zip(OBJECTS, (rle, [flat(DOGS[0])], [flat(DOGS[1])]), strict=True):
            entry = {"image_id": image_id, "category_id": first_id + NAMES.index(name), "iscrowd": 0}
            annotations.append(
                {"id": len(annotations) + 1, **entry, "segmentation": segmentation, "area": int(mask.sum())}
            )
    categories = [{"id": first_id + i, "name": name, "supercategory": parent or ""} for i, name in enumerate(NAMES)]
    if parent is not None:
        categories.insert(0, {"id": 0, "name": parent, "supercategory": "none"})
    images = [{"id": i, "file_name": n, "height": HEIGHT, "width": WIDTH} for i, n in enumerate(names, start=1)]
    return {"info": {}, "licenses": [], "images": images, "categories": categories, "annotations": annotations}


def _coco(root: Path, json_file: str, folder: str, names: Sequence[str], **options: Any) -> None:
    trees.write_json(root / json_file, coco_content(names, **options))
    for seed, name in enumerate(names):
        trees.write_image(root / folder / name.replace("\\", "/").rpartition("/")[2], seed=seed)


def cvat_coco(root: Path) -> Path:
    """CVAT 2.20, "COCO 1.0"."""
    _coco(root, "annotations/instances_default.json", "images/default", ["0.jpg", "1.jpg", "2.jpg"])
    return root


def label_studio_coco(root: Path) -> Path:
    """label-studio-converter 0.0.59 on Windows: ids from 0, backslashes."""
    _coco(root, "result.json", "images", [f"images\\{i:08x}-{i}.jpg" for i in range(3)], first_id=0)
    return root


def fiftyone_coco(root: Path) -> Path:
    """FiftyOne 1.0, COCODetectionDataset."""
    _coco(root, "labels.json", "data", ["0.jpg", "1.jpg", "2.jpg"])
    return root


def roboflow_coco(root: Path) -> Path:
    """Roboflow, export "COCO Segmentation" of 2024: category 0 is the parent of the classes and has no object."""
    for part, names in (("train", ["0_jpg.rf.1a.jpg", "1_jpg.rf.2b.jpg"]), ("valid", ["2_jpg.rf.3c.jpg"])):
        _coco(root, f"{part}/_annotations.coco.json", part, names, parent="pets")
    return root


LAYOUTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "YOLO, ultralytics": (yolo_ultralytics, "yolo"),
    "YOLO, lists": (yolo_lists, "yolo"),
    "YOLO, Roboflow": (yolo_roboflow, "yolo"),
    "Supervisely": (supervisely, "supervisely"),
    "COCO, CVAT": (cvat_coco, "coco_instances"),
    "COCO, Label Studio": (label_studio_coco, "coco_instances"),
    "COCO, FiftyOne": (fiftyone_coco, "coco_instances"),
    "COCO, Roboflow": (roboflow_coco, "coco_instances"),
}


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
