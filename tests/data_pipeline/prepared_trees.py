"""Tiny trees of official downloads, as the preparation scripts expect them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

from mask2former.data.datasets.classes import class_table
from mask2former.structures import id_to_rgb

SIZE = (21, 30)  # height and width, odd on purpose


def write_picture(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def write_photo(path: Path, size: tuple[int, int] = SIZE) -> Path:
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (*size, 3)).astype(np.uint8)
    return write_picture(path, pixels)


def ade20k_tree(root: Path, splits: tuple[str, ...] = ("training", "validation")) -> None:
    """Per split: an image with two beds and a person on wall and sky, and one with wall and unlabelled pixels only."""
    folder = root / "ADEChallengeData2016"
    for split in splits:
        prefix = "ADE_train_" if split == "training" else "ADE_val_"
        labels = np.zeros((2, *SIZE), np.uint8)
        labels[:, :10] = 1  # wall
        labels[0, 10:] = 3  # sky
        labels[0, 5:15, 5:15] = 8  # bed, but one row of it belongs to no instance
        instances = np.zeros((2, *SIZE, 3), np.uint8)
        instances[0, 6:15, 5:10] = (1, 1, 0)
        instances[0, 6:15, 10:15] = (1, 2, 0)
        instances[0, 12:20, 20:25] = (4, 3, 0)
        for index in range(2):
            name = f"{prefix}{index:08d}"
            write_photo(folder / "images" / split / f"{name}.jpg")
            write_picture(folder / "annotations" / split / f"{name}.png", labels[index])
            write_picture(folder / "annotations_instance" / split / f"{name}.png", instances[index])


def coco_tree(root: Path, splits: tuple[str, ...] = ("train2017", "val2017")) -> np.ndarray:
    """Two images a split: a person, a toothbrush and a rug (ids 1, 90, 200), and one image without segments.

    Returns the segment ids (H, W) of the first.
    """
    folder = root / "coco"
    ids = np.zeros(SIZE, np.int32)
    ids[:8] = 7
    ids[8:14, 3:9] = 300
    ids[8:20, 12:30] = 70_000
    boxes = {7: (0, 0, 30, 8), 300: (3, 8, 6, 6), 70_000: (12, 8, 18, 12)}
    for split in splits:
        images = [{"id": i, "file_name": f"{i:012d}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in (1, 2)]
        segments = [
            {"id": i, "category_id": c, "iscrowd": 0, "bbox": boxes[i], "area": int((ids == i).sum())}
            for i, c in ((7, 200), (300, 1), (70_000, 90))
        ]
        annotations = [
            {"image_id": 1, "file_name": f"{1:012d}.png", "segments_info": segments},
            {"image_id": 2, "file_name": f"{2:012d}.png", "segments_info": []},
        ]
        things = [
            {
                "id": n,
                "image_id": 1,
                "category_id": s["category_id"],
                "iscrowd": 0,
                "bbox": s["bbox"],
                "segmentation": [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]],
            }
            for n, s in enumerate(segments[1:], start=1)
        ]
        for image in images:
            write_photo(folder / split / str(image["file_name"]))
        write_picture(folder / f"panoptic_{split}" / f"{1:012d}.png", id_to_rgb(ids))
        write_picture(folder / f"panoptic_{split}" / f"{2:012d}.png", id_to_rgb(np.zeros_like(ids)))
        _write_json(folder / "annotations" / f"panoptic_{split}.json", images=images, annotations=annotations)
        _write_json(folder / "annotations" / f"instances_{split}.json", images=images, annotations=things)
    _write_json(folder / "annotations" / "image_info_test2017.json", images=images)
    write_photo(folder / "test2017" / f"{1:012d}.jpg")
    return ids


def coco_stuff_10k_tree(root: Path) -> np.ndarray:
    """One image a split; returns its raw labels (H, W): unlabelled, person, wood."""
    folder = root / "coco" / "coco_stuff_10k"
    labels = np.zeros(SIZE, np.uint8)
    labels[3:9], labels[9:] = 1, 182
    for split, name in (("train", "COCO_train2014_000000000077"), ("test", "COCO_train2014_000000000078")):
        write_photo(folder / "images" / f"{name}.jpg")
        (folder / "imageLists").mkdir(exist_ok=True)
        (folder / "imageLists" / f"{split}.txt").write_text(f"{name}\n")
        (folder / "annotations").mkdir(exist_ok=True)
        scipy.io.savemat(folder / "annotations" / f"{name}.mat", {"S": labels, "names": ["a"]})
    return labels


def cityscapes_tree(
    root: Path, splits: tuple[str, ...] = ("train", "val", "test"), *, has_polygons: bool = False
) -> np.ndarray:
    """Two cities of one image a split; returns the instance ids (H, W)."""
    folder = root / "cityscapes"
    ids = np.zeros(SIZE, np.uint16)  # unlabelled
    ids[:4] = 23  # sky
    ids[4:16] = 7  # road
    ids[6:12, 2:6] = 26_000  # two cars, one at the edge
    ids[6:12, 26:] = 26_001
    ids[5:8, 10:20] = 24  # a group of persons
    ids[18:] = 1  # ego vehicle
    ids[16, :3] = 29_000  # a caravan, which is not evaluated
    labels = np.where(ids >= 1000, ids // 1000, ids).astype(np.uint8)
    for split in splits:
        for city in ("aachen", "ulm"):
            stem = f"{city}_000000_000019"
            write_photo(folder / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
            annotations = folder / "gtFine" / split / city
            write_picture(annotations / f"{stem}_gtFine_labelIds.png", labels)
            write_picture(annotations / f"{stem}_gtFine_instanceIds.png", ids)
            if has_polygons:
                _write_polygons(annotations / f"{stem}_gtFine_polygons.json")
    return ids


def _write_polygons(path: Path) -> None:
    """Two cars and a group, as in the instance map."""
    outlines = {"car": [(2, 6, 5, 11), (26, 6, 29, 11)], "persongroup": [(10, 5, 19, 7)]}
    objects = [
        {"label": label, "polygon": [[left, top], [right, top], [right, bottom], [left, bottom]]}
        for label, boxes in outlines.items()
        for left, top, right, bottom in boxes
    ]
    path.write_text(json.dumps({"imgHeight": SIZE[0], "imgWidth": SIZE[1], "objects": objects}), encoding="utf-8")


def mapillary_tree(root: Path, *, nested: bool) -> None:
    """One image a split, annotated by version 1.2, which version 2.0 keeps in a folder of its own."""
    ids = np.zeros(SIZE, np.int32)
    ids[:9], ids[9:] = 28 * 256, 20 * 256 + 1
    segments = [
        {"id": 28 * 256, "category_id": 28, "iscrowd": 0},
        {"id": 20 * 256 + 1, "category_id": 20, "iscrowd": 0},
    ]
    for split in ("training", "validation"):
        folder = root / "mapillary_vistas" / split
        annotations = folder / "v1.2" if nested else folder
        write_photo(folder / "images" / "a_b.jpg")
        labels = Image.fromarray(np.where(ids == 28 * 256, 27, 65).astype(np.uint8)).convert("P")
        (annotations / "labels").mkdir(parents=True)
        labels.save(annotations / "labels" / "a_b.png")
        write_picture(annotations / "panoptic" / "a_b.png", id_to_rgb(ids))
        _write_json(
            annotations / "panoptic" / "panoptic_2018.json",
            images=[{"id": "a_b", "file_name": "a_b.jpg", "height": SIZE[0], "width": SIZE[1]}],
            annotations=[{"image_id": "a_b", "file_name": "a_b.png", "segments_info": segments}],
        )


def ade20k_full_tree(root: Path) -> None:
    """A large and a small image; the index names all classes, in an order of its own, among other names."""
    folder = root / "ADE20K_2021_17_01"
    names = ["no class", *(c.name for c in reversed(class_table("ade20k_full"))), "another"]
    for split, name, size in (
        ("training", "ADE_train_00000001", (1030, 1100)),
        ("training", "ADE_frame_00000002", (9, 7)),
        ("validation", "ADE_val_00000001", SIZE),
    ):
        image = write_photo(folder / "images" / "ADE" / split / "urban" / "street" / f"{name}.jpg", size)
        channels = np.zeros((*size, 3), np.uint8)
        for rows, class_name in ((slice(1, 3), "wall"), (slice(3, 5), "no class"), (slice(5, None), "sky")):
            place = names.index(class_name) + 1
            channels[rows] = (place // 256 * 10, place % 256, 9)
        write_picture(image.with_name(f"{name}_seg.png"), channels)
    index = {"objectnames": names, "filename": ["a.jpg"], "objectPresence": np.zeros((2, 3), np.uint8)}
    (folder / "index_ade20k.pkl").write_bytes(pickle.dumps(index))


def _write_json(path: Path, **content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
