"""Polygons of Cityscapes on made-up scenes, against the published rule written down once more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from mask2former.config import CfgNode
from mask2former.data import DatasetCatalog
from mask2former.data.datasets.cityscapes import POLYGONS_KEY, visible_instances
from mask2former.data.targets import instance_targets
from mask2former.data.training_sets import load_train_dicts
from mask2former.data.transforms import ResizeTransform
from mask2former.errors import DatasetError
from tests.data_pipeline.prepared_trees import SIZE, cityscapes_tree

shapely = pytest.importorskip("shapely")

THINGS = {"person": 0, "rider": 1, "car": 2, "truck": 3, "bus": 4, "train": 5, "motorcycle": 6, "bicycle": 7}
HEIGHT, WIDTH = 48, 64


def random_scene(seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    labels = ["car", "person", "cargroup", "caravan", "sky", "pole", "polegroup", "license plate", "bicycle"]
    objects = []
    for index in range(14):
        centre, radius = rng.uniform((4, 4), (WIDTH - 4, HEIGHT - 4)), rng.uniform(3, 14)
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
        points = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        entry = {"label": str(rng.choice(labels)), "polygon": points.round().astype(int).tolist()}
        objects.append({**entry, "deleted": 0} if index == 3 else entry)
    return objects


def published_instances(objects: list[dict[str, Any]]) -> list[tuple[int, bool, list[list[float]]]]:
    """The rule: from the last object to the first, what is visible of each, widened, without its holes."""
    without_class = {"caravan", "sky", "pole", "polegroup"}
    union, found = shapely.Polygon(), []
    for entry in objects[::-1]:
        if "deleted" in entry or entry["label"] == "license plate":
            continue
        ring = np.asarray(entry["polygon"], dtype="f4") + 0.5
        polygon = shapely.Polygon(ring).buffer(0.5, quad_segs=4)
        if entry["label"] not in without_class:
            rest = polygon.difference(union)
            if not rest.is_empty:
                parts = list(rest.geoms) if rest.geom_type == "MultiPolygon" else [rest]
                outlines = [np.asarray(part.exterior.coords).reshape(-1).tolist() for part in parts]
                label = entry["label"]
                found.append((THINGS[label.replace("group", "")], label.endswith("group"), outlines))
        union = union.union(polygon)
    return found


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("scale", [1.0, 0.6, 2.5])
def test_targets_equal_the_published_ones_pixel_by_pixel(seed: int, scale: float) -> None:
    objects, size = random_scene(seed), (round(HEIGHT * scale), round(WIDTH * scale))
    annotations = visible_instances(objects, THINGS, source="a.json")
    published = published_instances(objects)
    assert [(a["category_id"], bool(a["iscrowd"])) for a in annotations] == [(c, g) for c, g, _ in published]
    transform = ResizeTransform(HEIGHT, WIDTH, *size)
    targets = instance_targets(annotations, transform, size=(HEIGHT, WIDTH), context="a", keep_empty=True)
    ratio = np.array([size[1] / WIDTH, size[0] / HEIGHT])
    outlines = [o for _, is_group, o in published if not is_group]
    assert len(targets) == len(outlines)
    for mask, parts in zip(targets.gt_masks.numpy(), outlines, strict=True):
        moved = [(np.array(part).reshape(-1, 2) * ratio).reshape(-1).tolist() for part in parts]
        assert np.array_equal(mask, coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(moved, *size))).astype(bool))


def test_polygons_stay_close_to_what_cityscapes_draws() -> None:
    triangle = [[10, 8], [40, 12], [22, 36]]
    drawn = Image.new("1", (WIDTH, HEIGHT))
    ImageDraw.Draw(drawn).polygon([tuple(point) for point in triangle], fill=1)
    (annotation,) = visible_instances([{"label": "car", "polygon": triangle}], THINGS, source="a.json")
    mask = coco_mask.decode(coco_mask.frPyObjects(annotation["segmentation"], HEIGHT, WIDTH))[..., 0].astype(bool)
    assert (mask & np.array(drawn)).sum() / (mask | np.array(drawn)).sum() > 0.95


def test_holes_are_filled_and_what_lies_on_top_is_cut_off() -> None:
    def square(low: int, high: int, label: str) -> dict[str, Any]:
        return {"label": label, "polygon": [[low, low], [high, low], [high, high], [low, high]]}

    inner, outer = visible_instances([square(5, 40, "car"), square(15, 25, "person")], THINGS, source="a.json")
    assert (inner["category_id"], outer["category_id"]) == (0, 2)
    assert len(outer["segmentation"]) == 1  # the outline alone
    (hidden,) = visible_instances([square(15, 25, "person"), square(5, 40, "car")], THINGS, source="a.json")
    assert hidden["category_id"] == 2
    pole = {"label": "pole", "polygon": [[20, 0], [24, 0], [24, 47], [20, 47]]}
    (car,) = visible_instances([square(5, 40, "car"), pole], THINGS, source="a.json")
    parts = sorted((min(part[0::2]), max(part[0::2])) for part in car["segmentation"])
    assert parts == [(5, 20), (25, 41)]  # two, beside the pole, which is widened too


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"label": "dragon", "polygon": [[1, 1], [5, 1], [5, 5]]}, "a.json: object 0: unknown label 'dragon'"),
        ({"label": "car", "polygon": [[1, 1], [5, 1]]}, "a.json: object 0: its polygon needs at least 3 points"),
        ({"label": "car", "polygon": 7}, "a.json: object 0: its polygon needs at least 3 points"),
        ({"label": "car"}, "a.json: object 0: missing 'polygon'"),
        (7, "a.json: object 0: expected an object"),
    ],
)
def test_wrong_objects_are_named(entry: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        visible_instances([entry], THINGS, source="a.json")


def test_training_reads_polygons_unless_told_otherwise(
    tmp_path: Path, cfg: CfgNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    cityscapes_tree(tmp_path)
    cfg.INPUT.DATASET_MAPPER_NAME, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = "mask_former_instance", 8
    cfg.DATASETS.TRAIN = ["cityscapes_fine_instance_seg_train"]
    objects = [{"label": "car", "polygon": [[2, 6], [6, 6], [6, 12], [2, 12]]}]
    files = [record[POLYGONS_KEY] for record in DatasetCatalog.get(cfg.DATASETS.TRAIN[0])]
    for path in files:
        Path(path).unlink(missing_ok=True)
    with pytest.raises(DatasetError, match=r"gtFine_polygons\.json; DATASETS\.CITYSCAPES_POLYGONS false"):
        load_train_dicts(cfg)
    for path in files:
        Path(path).write_text(json.dumps({"imgHeight": SIZE[0], "imgWidth": SIZE[1], "objects": objects}))
    ((first,), _) = [record["annotations"] for record in load_train_dicts(cfg)]
    assert isinstance(first["segmentation"], list)
    cfg.DATASETS.CITYSCAPES_POLYGONS = False
    assert isinstance(load_train_dicts(cfg)[0]["annotations"][0]["segmentation"], dict)
    Path(files[0]).write_text(json.dumps({"imgHeight": 3, "imgWidth": 4, "objects": []}))
    cfg.DATASETS.CITYSCAPES_POLYGONS = True
    with pytest.raises(DatasetError, match="imgHeight"):
        load_train_dicts(cfg)
