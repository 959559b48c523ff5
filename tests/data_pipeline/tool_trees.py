"""Tiny data sets laid out as labelling tools export them: in every image a cat with a hole in it, and two dogs.

Each function says the tool and the version whose layout it follows.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
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


def label_map() -> np.ndarray:
    """Class ids (H, W): 0 background, 1 cat, 2 dog."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for name, mask in OBJECTS:
        labels[mask] = 1 + NAMES.index(name)
    return labels


def object_map() -> np.ndarray:
    """Numbers of the objects (H, W), from 1 on."""
    numbers = np.zeros((HEIGHT, WIDTH), np.uint8)
    for number, (_, mask) in enumerate(OBJECTS, start=1):
        numbers[mask] = number
    return numbers


VOC_COLOURS = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]  # of the indices 0..3
BORDER = (224, 224, 192)


def in_colours(numbers: np.ndarray) -> np.ndarray:
    colours = np.array([*VOC_COLOURS, BORDER], np.uint8)
    return colours[np.where(numbers == 255, len(VOC_COLOURS), numbers)]


def with_border(numbers: np.ndarray) -> np.ndarray:
    """255 in a row that no object has."""
    numbers = numbers.copy()
    numbers[0] = 255
    return numbers


def _voc_images(root: Path) -> None:
    for number in range(3):
        trees.write_image(root / "JPEGImages" / f"{number}.jpg", seed=number)


def voc(root: Path) -> Path:
    """VOC 2012 in VOCdevkit/VOC2012: palettes, borders of 255, the twenty classes (8 is cat, 12 dog)."""
    place = root / "VOCdevkit/VOC2012"
    _voc_images(place)
    classes = np.array([0, 8, 12], np.uint8)[label_map()]
    for number in range(3):
        trees.write_mask(place / "SegmentationClass" / f"{number}.png", with_border(classes), "P")
        trees.write_mask(place / "SegmentationObject" / f"{number}.png", with_border(object_map()), "P")
    for part, names in (("train", "0\n1\n"), ("val", "2\n"), ("trainval", "0\n1\n2\n")):
        _write(place / "ImageSets/Segmentation" / f"{part}.txt", names)
    return root


def cvat_masks(root: Path) -> Path:
    """CVAT 2.20, "Segmentation mask 1.1": masks in colours, labelmap.txt, the one list default.txt."""
    _voc_images(root)
    for number in range(3):
        trees.write_mask(root / "SegmentationClass" / f"{number}.png", in_colours(label_map()))
        trees.write_mask(root / "SegmentationObject" / f"{number}.png", in_colours(object_map()))
    _write(root / "ImageSets/Segmentation/default.txt", "0\n1\n2\n")
    _write(
        root / "labelmap.txt",
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\ndog:0,128,0::\n",
    )
    return root


def labelme_voc(root: Path) -> Path:
    """labelme 5, examples/instance_segmentation/labelme2voc.py: class_names.txt, no lists."""
    _voc_images(root)
    for number in range(3):
        trees.write_mask(root / "SegmentationClass" / f"{number}.png", label_map(), "P")
        trees.write_mask(root / "SegmentationObject" / f"{number}.png", object_map(), "P")
    _write(root / "class_names.txt", "__ignore__\n_background_\ncat\ndog\n")
    return root


def cvat_xml(root: Path) -> Path:
    """CVAT 2.20, "CVAT for images 1.1", saved with images: polygons, brush masks, and a box, which has no mask."""
    cat = CAT_MASK[2:12, 2:14].reshape(-1)
    ends = np.flatnonzero(np.diff(cat)) + 1
    runs = ", ".join(map(str, [0, *np.diff([0, *ends.tolist(), cat.size]).tolist()]))
    images = []
    for number in range(3):
        trees.write_image(root / "images" / f"{number}.jpg", seed=number)
        polygons = "".join(
            f'<polygon label="dog" source="manual" occluded="0" points="{";".join(f"{x:.2f},{y:.2f}" for x, y in dog)}"'
            ' z_order="0"></polygon>'
            for dog in DOGS
        )
        images.append(
            f'<image id="{number}" name="{number}.jpg" width="{WIDTH}" height="{HEIGHT}">{polygons}'
            f'<mask label="cat" source="manual" occluded="0" rle="{runs}" left="2" top="2" width="12" height="10"'
            ' z_order="0"></mask><box label="dog" occluded="0" xtl="1" ytl="1" xbr="5" ybr="5" z_order="0"></box>'
            "</image>"
        )
    labels = "".join(f"<label><name>{name}</name><type>any</type></label>" for name in NAMES)
    _write(
        root / "annotations.xml",
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><job><labels>'
        f"{labels}</labels></job></meta>{''.join(images)}</annotations>",
    )
    return root


def brush(mask: np.ndarray) -> list[int]:
    """As label-studio-converter 0.0.59 encodes a mask: literals and runs of RGBA values."""
    values = np.repeat(mask.reshape(-1).astype(int) * 255, 4)
    bits = f"{len(values):032b}" + f"{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    for begin, end in pairwise(edges):
        if end - begin <= 8:  # as literals
            bits += f"0{0:02b}{end - begin - 1:03b}" + "".join(f"{value:08b}" for value in values[begin:end])
        else:
            bits += f"1{3:02b}{end - begin - 1:016b}{values[begin]:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def label_studio(root: Path) -> Path:
    """Label Studio 1.13, "JSON": polygons in percent, a brush, a rectangle, which has no mask; names of uploads."""
    tasks = []
    for number in range(3):
        trees.write_image(root / "images" / f"{number}.jpg", seed=number)
        size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
        results: list[dict[str, Any]] = [
            {
                **size,
                "id": f"p{i}",
                "type": "polygonlabels",
                "value": {
                    "points": [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in dog],
                    "closed": True,
                    "polygonlabels": ["dog"],
                },
            }
            for i, dog in enumerate(DOGS)
        ]
        value = {"format": "rle", "rle": brush(CAT_MASK), "brushlabels": ["cat"]}
        results.append({**size, "id": "b", "type": "brushlabels", "value": value})
        box = {"x": 1, "y": 1, "width": 9, "height": 9, "rotation": 0, "rectanglelabels": ["dog"]}
        results.append({**size, "id": "r", "type": "rectanglelabels", "value": box})
        annotations = [{"id": 1, "was_cancelled": False, "result": results}]
        data = {"image": f"/data/upload/1/{number:08x}-{number}.jpg"}
        tasks.append({"id": number + 1, "annotations": annotations, "predictions": [], "data": data})
    trees.write_json(root / "project-1-at-2024-05-01.json", tasks)
    return root


def _via_entries(root: Path) -> dict[str, Any]:
    """A cat with a hole as one outline: VIA has no holes, so that people draw the way there and back."""
    outlines = [("cat", [*CAT, CAT[0], *HOLE, HOLE[0]]), ("dog", DOGS[0]), ("dog", DOGS[1])]
    entries = {}
    for number in range(3):
        image = trees.write_image(root / f"{number}.jpg", seed=number)
        regions = []
        for name, points in outlines:
            shape = {"name": "polygon", "all_points_x": [x for x, _ in points], "all_points_y": [y for _, y in points]}
            regions.append({"shape_attributes": shape, "region_attributes": {"type": name}})
        size = image.stat().st_size
        entry = {"filename": image.name, "size": size, "regions": regions, "file_attributes": {}}
        entries[f"{image.name}{size}"] = entry
    return entries


def via_json(root: Path) -> Path:
    """VIA 2.0.12, "Export Annotations (as json)"."""
    trees.write_json(root / "via_region_data.json", _via_entries(root))
    return root


def via_project(root: Path) -> Path:
    """VIA 2.0.12, a project."""
    content = {
        "_via_settings": {},
        "_via_img_metadata": _via_entries(root),
        "_via_attributes": {"region": {}, "file": {}},
    }
    trees.write_json(root / "via_project_1May2024.json", content)
    return root / "via_project_1May2024.json"


def via_csv(root: Path) -> Path:
    """VIA 2.0.12, "Export Annotations (as csv)"."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    names = "filename file_size file_attributes region_count region_id region_shape_attributes region_attributes"
    writer.writerow(names.split())
    for entry in _via_entries(root).values():
        for number, region in enumerate(entry["regions"]):
            shape, labels = json.dumps(region["shape_attributes"]), json.dumps(region["region_attributes"])
            writer.writerow([entry["filename"], entry["size"], "{}", len(entry["regions"]), number, shape, labels])
    _write(root / "via_region_data.csv", buffer.getvalue())
    return root


def _mask_tree(root: Path, places: Sequence[tuple[str, str]], *, ending: str = "", in_colour: bool = False) -> Path:
    """Images and masks in these pairs of folders: two in the first, one in the second."""
    labels = in_colours(label_map()) if in_colour else label_map()
    numbers = iter(range(3))
    for (images, masks), count in zip(places, (2, 1) if len(places) > 1 else (3,), strict=True):
        for _ in range(count):
            number = next(numbers)
            trees.write_image(root / images / f"{number}.jpg", seed=number)
            trees.write_mask(root / masks / f"{number}{ending}.png", labels)
    return root


def mmseg(root: Path) -> Path:
    """mmsegmentation 1.2: data/my_dataset/{img_dir,ann_dir}/{train,val}, masks with an ending (seg_map_suffix)."""
    root = _mask_tree(
        root, [("img_dir/train", "ann_dir/train"), ("img_dir/val", "ann_dir/val")], ending="_labelTrainIds"
    )
    return _named(root)


def _named(root: Path) -> Path:
    """The names of the ids come with ADE20K's table."""
    rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName", "1\t0.1\t2\t1\t0\tcat, feline", "2\t0.1\t2\t1\t0\tdog"]
    _write(root / "objectInfo150.txt", "\n".join(rows) + "\n")
    return root


def ade20k(root: Path) -> Path:
    """ADE20K, SceneParsing release of 2016: 0 is what no class has."""
    places = [("images/training", "annotations/training"), ("images/validation", "annotations/validation")]
    return _named(_mask_tree(root, places))


def flat_masks(root: Path) -> Path:
    """images and masks alone, masks called a_mask.png, as many scripts write them."""
    return _mask_tree(root, [("images", "masks")], ending="_mask")


def camvid(root: Path) -> Path:
    """CamVid as published on Kaggle: train, train_labels with _L, colours in class_dict.csv."""
    _write(root / "class_dict.csv", "name,r,g,b\nbackground,0,0,0\ncat,128,0,0\ndog,0,128,0\n")
    return _mask_tree(root, [("train", "train_labels"), ("val", "val_labels")], ending="_L", in_colour=True)


def colour_masks(root: Path) -> Path:
    """train/images and train/masks in colours, with CVAT's labelmap.txt."""
    _write(root / "labelmap.txt", "background:0,0,0::\ncat:128,0,0::\ndog:0,128,0::\n")
    return _mask_tree(root, [("train/images", "train/masks"), ("valid/images", "valid/masks")], in_colour=True)


LAYOUTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "YOLO, ultralytics": (yolo_ultralytics, "yolo"),
    "YOLO, lists": (yolo_lists, "yolo"),
    "YOLO, Roboflow": (yolo_roboflow, "yolo"),
    "Pascal VOC": (voc, "voc"),
    "Pascal VOC, CVAT": (cvat_masks, "voc"),
    "Pascal VOC, labelme": (labelme_voc, "voc"),
    "CVAT for images": (cvat_xml, "cvat"),
    "Label Studio": (label_studio, "label_studio"),
    "VIA, JSON": (via_json, "via"),
    "VIA, project": (via_project, "via"),
    "VIA, CSV": (via_csv, "via"),
    "Supervisely": (supervisely, "supervisely"),
    "COCO, CVAT": (cvat_coco, "coco_instances"),
    "COCO, Label Studio": (label_studio_coco, "coco_instances"),
    "COCO, FiftyOne": (fiftyone_coco, "coco_instances"),
    "COCO, Roboflow": (roboflow_coco, "coco_instances"),
}

SEMANTIC_LAYOUTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "Pascal VOC": (voc, "voc_semantic"),
    "Pascal VOC, CVAT": (cvat_masks, "voc_semantic"),
    "mmsegmentation": (mmseg, "mask_tree"),
    "ADE20K": (ade20k, "mask_tree"),
    "images and masks": (flat_masks, "mask_tree"),
    "CamVid": (camvid, "mask_tree"),
    "masks in colours": (colour_masks, "mask_tree"),
}


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
