"""Further layouts of the scene of `tool_trees`: parts in other places, files of other kinds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mask2former.data.own_data import convert_own_data
from tests.data_pipeline import own_data_trees as trees
from tests.data_pipeline import tool_trees as tools

Make = Callable[[Path], Path]
PARTS = (("train", ("0.jpg", "1.jpg")), ("val", ("2.jpg",)))


def coco_published(root: Path) -> Path:
    """COCO 2017: annotations/instances_train2017.json, images in train2017."""
    for part, names in PARTS:
        tools._coco(root, f"annotations/instances_{part}2017.json", f"{part}2017", names)
    return root


def coco_parts(root: Path) -> Path:
    """train.json and valid.json beside images, as scripts that divide a COCO file write them."""
    for part, names in (("train", ["0.jpg", "1.jpg"]), ("valid", ["2.jpg"])):
        tools._coco(root, f"{part}.json", "images", names)
    return root


def coco_one_file(root: Path) -> Path:
    """One JSON file with its images beside it, given by its path."""
    tools._coco(root, "everything.json", ".", ["0.jpg", "1.jpg", "2.jpg"])
    return root / "everything.json"


def cvat_coco_subsets(root: Path) -> Path:
    """CVAT 2.20, "COCO 1.0" of a task with subsets: instances_train.json, images/train."""
    for part, names in PARTS:
        tools._coco(root, f"annotations/instances_{part}.json", f"images/{part}", names)
    return root


def _labelme_file(root: Path, name: str, seed: int) -> None:
    image = trees.write_image(root / name, seed=seed)
    mask = trees.encode_mask(tools.CAT_MASK[2:12, 2:14])
    shapes: list[dict[str, Any]] = [{"label": "cat", "points": [[2, 2], [13, 11]], "shape_type": "mask", "mask": mask}]
    shapes += [{"label": "dog", "points": corners, "shape_type": "polygon"} for corners in tools.DOGS]
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image.name, "imageData": None}
    content |= {"imageHeight": tools.HEIGHT, "imageWidth": tools.WIDTH}
    trees.write_json(image.with_suffix(".json"), content)


def labelme_flat(root: Path) -> Path:
    """labelme 5.5: a JSON file beside each image; polygons and masks."""
    for seed in range(3):
        _labelme_file(root, f"{seed}.jpg", seed)
    return root


def labelme_parts(root: Path) -> Path:
    """labelme 5.5, in the folders train and val."""
    for seed, name in enumerate(("train/0.jpg", "train/1.jpg", "val/2.jpg")):
        _labelme_file(root, name, seed)
    return root


def _yolo_files(root: Path, parts: Sequence[str]) -> None:
    for number, part in enumerate(parts):
        trees.write_image(root / "images" / part / f"{number}.jpg", seed=number)
        tools._write(root / "labels" / part / f"{number}.txt", tools.yolo_lines())


def yolo_cvat(root: Path) -> Path:
    """CVAT 2.20, "Ultralytics YOLO Segmentation 1.0": data.yaml, and a list of images for each subset."""
    _yolo_files(root, ("train", "train", "val"))
    tools._write(root / "train.txt", "images/train/0.jpg\nimages/train/1.jpg\n")
    tools._write(root / "val.txt", "images/val/2.jpg\n")
    tools._write(root / "data.yaml", "names:\n  0: cat\n  1: dog\npath: .\ntrain: train.txt\nval: val.txt\n")
    return root


def yolo_fiftyone(root: Path) -> Path:
    """FiftyOne 1.0, YOLOv5Dataset: dataset.yaml, paths with a dot before them."""
    _yolo_files(root, ("train", "train", "val"))
    tools._write(
        root / "dataset.yaml", "names:\n  0: cat\n  1: dog\npath: .\ntrain: ./images/train/\nval: ./images/val/\n"
    )
    return root


def yolo_folders(root: Path) -> Path:
    """ultralytics 8.3: a part is a list of folders."""
    _yolo_files(root, ("monday", "tuesday", "val"))
    tools._write(
        root / "data.yaml", "train:\n- images/monday\n- images/tuesday\nval: images/val\nnames: {0: cat, 1: dog}\n"
    )
    return root


def zipped_yolo(root: Path) -> Path:
    """Roboflow's export as it is downloaded; unpacked by the reader of the test."""
    tools.yolo_roboflow(root.with_name("content"))
    shutil.unpack_archive(shutil.make_archive(str(root), "zip", root.with_name("content")), root)
    return root


def via_parts(root: Path) -> Path:
    """VIA 2.0.12 as Mask R-CNN's balloon data set is laid out: train/via_region_data.json, val/via_region_data.json."""
    for part, names in PARTS:
        content = tools._via_entries(root / part)
        kept = {key: entry for key, entry in content.items() if entry["filename"] in names}
        for entry in content.values():
            if entry["filename"] not in names:
                (root / part / entry["filename"]).unlink()
        trees.write_json(root / part / "via_region_data.json", kept)
    return root


def supervisely_one(root: Path) -> Path:
    """Supervisely SDK 6.73: one data set, ds0."""
    tools.supervisely(root)
    for folder in ("img", "ann"):
        (root / "ds0" / folder).mkdir(parents=True)
        for part in ("train", "val"):
            for file in (root / part / folder).iterdir():
                file.rename(root / "ds0" / folder / file.name)
    for part in ("train", "val"):
        shutil.rmtree(root / part)
    return root


def label_studio_local(root: Path) -> Path:
    """Label Studio 1.13, "JSON", images of local storage: /data/local-files/?d=PATH."""
    tools.label_studio(root)

    def change(tasks: list[dict[str, Any]]) -> None:
        for number, task in enumerate(tasks):
            task["data"] = {"picture": f"/data/local-files/?d=photos%5C{number}.jpg"}

    tools.edit_json(next(root.glob("*.json")), change)
    return root


def _in_parts(make: Make, root: Path) -> Path:
    """Two exports of one layout in the folders train and val, the images of the other one taken out."""
    make(root / "all")
    for part, names in PARTS:
        shutil.copytree(root / "all", root / part)
        for image in (root / part).rglob("*.jpg"):
            if image.name not in names:
                image.unlink()
    shutil.rmtree(root / "all")
    return root


def label_studio_parts(root: Path) -> Path:
    """Label Studio 1.13, "JSON": an export in each of train and val."""
    _in_parts(tools.label_studio, root)
    for part, names in PARTS:
        file = next((root / part).glob("*.json"))
        content = json.loads(file.read_text(encoding="utf-8"))
        trees.write_json(file, [task for task in content if task["data"]["image"].split("-")[-1] in names])
    return root


def cvat_parts(root: Path) -> Path:
    """CVAT 2.20, "CVAT for images 1.1": an export in each of train and val."""
    _in_parts(tools.cvat_xml, root)
    for part, names in PARTS:
        file = root / part / "annotations.xml"
        head, *images = file.read_text().split("<image ")
        images = [text for text in images if text.split('name="')[1].startswith(tuple(names))]
        kept = [text.removesuffix("</annotations>") for text in images]
        file.write_text(head + "".join(f"<image {image}" for image in kept) + "</annotations>")
    return root


def voc_root(root: Path) -> Path:
    """VOC 2012 given by the folder of its year."""
    return tools.voc(root) / "VOCdevkit/VOC2012"


INSTANCE_LAYOUTS: dict[str, tuple[Make, str]] = {
    "COCO, published": (coco_published, "coco_instances"),
    "COCO, parts": (coco_parts, "coco_instances"),
    "COCO, one file": (coco_one_file, "coco_instances"),
    "COCO, CVAT with subsets": (cvat_coco_subsets, "coco_instances"),
    "labelme": (labelme_flat, "labelme"),
    "labelme, parts": (labelme_parts, "labelme"),
    "YOLO, CVAT": (yolo_cvat, "yolo"),
    "YOLO, FiftyOne": (yolo_fiftyone, "yolo"),
    "YOLO, several folders": (yolo_folders, "yolo"),
    "YOLO, zip file": (zipped_yolo, "yolo"),
    "VIA, parts": (via_parts, "via"),
    "Supervisely, one data set": (supervisely_one, "supervisely"),
    "Label Studio, local files": (label_studio_local, "label_studio"),
    "Label Studio, parts": (label_studio_parts, "label_studio"),
    "CVAT for images, parts": (cvat_parts, "cvat"),
    "Pascal VOC, year": (voc_root, "voc"),
}


def _pairs(places: list[tuple[str, str]], *, named: bool = True, **options: Any) -> Make:
    def make(root: Path) -> Path:
        tree = tools._mask_tree(root, places, **options)
        return tools._named(tree) if named else tree

    return make


def png_tree(root: Path) -> Path:
    """train/images, train/masks, valid/…: one channel of ids."""
    return tools._mask_tree(root, [("train/images", "train/masks"), ("valid/images", "valid/masks")])


def png_palettes(root: Path) -> Path:
    """The same with palettes, training and validation."""
    for number, part in enumerate(("training", "training", "validation")):
        trees.write_image(root / part / "images" / f"{number}.jpg", seed=number)
        trees.write_mask(root / part / "masks" / f"{number}.png", tools.label_map(), "P")
    return root


def array_tree(root: Path) -> Path:
    """train/images/a.npy of four channels."""
    png_tree(root)
    for number, image in enumerate(sorted(root.rglob("*.jpg"))):
        image.unlink()
        pixels = np.random.default_rng(number).normal(size=(tools.HEIGHT, tools.WIDTH, 4))
        np.save(image.with_suffix(".npy"), pixels.astype(np.float32))
    return root


def roboflow_masks(root: Path) -> Path:
    """Roboflow, export "Semantic Segmentation Masks" of 2024: a_mask.png beside a.jpg, _classes.csv."""
    for part, numbers in (("train", (0, 1)), ("valid", (2,))):
        for number in numbers:
            trees.write_image(root / part / f"{number}_jpg.rf.1a.jpg", seed=number)
            trees.write_mask(root / part / f"{number}_jpg.rf.1a_mask.png", tools.label_map())
        tools._write(root / part / "_classes.csv", "Pixel Value, Class\n0, background\n1, cat\n2, dog\n")
    return root


SEMANTIC_LAYOUTS: dict[str, tuple[Make, str]] = {
    "PNG masks": (png_tree, "png_tree"),
    "PNG masks, palettes": (png_palettes, "png_tree"),
    "arrays and PNG masks": (array_tree, "png_tree"),
    "masks, Roboflow": (roboflow_masks, "mask_tree"),
    "masks, SegNet": (_pairs([("train", "trainannot"), ("val", "valannot")]), "mask_tree"),
    "masks, Pytorch-UNet": (_pairs([("imgs", "masks")], ending="_mask"), "mask_tree"),
    "masks by kind": (_pairs([("images/train", "masks/train"), ("images/val", "masks/val")]), "mask_tree"),
    "labels by kind": (_pairs([("images/train", "labels/train"), ("images/val", "labels/val")]), "mask_tree"),
    "labels by part": (_pairs([("train/images", "train/labels"), ("val/images", "val/labels")]), "mask_tree"),
    "masks beside parts": (_pairs([("train", "train_mask"), ("val", "val_mask")]), "mask_tree"),
    "images and annotations": (_pairs([("images", "annotations")]), "mask_tree"),
    "Pascal VOC, year": (voc_root, "voc_semantic"),
}


def coco_panoptic(root: Path) -> Path:
    """COCO 2017: annotations/panoptic_train2017.json, PNGs in panoptic_train2017 there."""
    trees.write_coco_panoptic(root, parts=("train2017", "val2017"))
    for part in ("train2017", "val2017"):
        (root / f"panoptic_{part}").rename(root / "annotations" / f"panoptic_{part}")
    return root


def coco_panoptic_beside(root: Path) -> Path:
    """Folders of PNGs beside the folder of the annotations, as detectron2 prepares them."""
    return trees.write_coco_panoptic(root)


def datasets_library(root: Path) -> Path:
    """The library datasets 5.2: image, annotation, semantic_class_to_id."""
    pytest.importorskip("datasets.config", reason="needs the extra [transformers]")
    convert_own_data(trees.write_coco_panoptic(root.with_name("source")), root, target="datasets")
    return root


PANOPTIC_LAYOUTS: dict[str, tuple[Make, str]] = {
    "COCO panoptic": (coco_panoptic, "coco_panoptic"),
    "COCO panoptic, beside": (coco_panoptic_beside, "coco_panoptic"),
    "library datasets": (datasets_library, "datasets"),
}
