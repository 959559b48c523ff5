"""Tiny data sets written to disk: the same four scenes as COCO panoptic, COCO instances and semantic PNGs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former.config import CfgNode, get_cfg
from mask2former.data.catalog import DatasetCatalog, MetadataCatalog
from mask2former.data.datasets import builtin
from mask2former.structures import bitmasks_to_rles, id_to_rgb

HEIGHT, WIDTH = 24, 32
THINGS = {7: "box", 3: "disc"}  # dataset id → name
STUFF = {50: "sky", 41: "grass"}


@dataclass
class TinyData:
    """Paths and contents. Image 0 has two things and a crowd, 1 stuff only, 2 nothing at all, 3 one thing."""

    root: Path
    ids: list[np.ndarray] = field(default_factory=list)
    segments: list[list[dict[str, Any]]] = field(default_factory=list)

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def panoptic(self) -> Path:
        return self.root / "panoptic"

    @property
    def panoptic_json(self) -> Path:
        return self.root / "panoptic.json"

    @property
    def sem_seg(self) -> Path:
        return self.root / "sem_seg"

    @property
    def instances_json(self) -> Path:
        return self.root / "instances.json"

    def edit(self, path: Path, change: Any) -> None:
        """Rewrite a JSON file as ``change(content)`` leaves it."""
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))


def _scenes() -> tuple[list[np.ndarray], list[list[dict[str, Any]]]]:
    def segment(segment_id: int, category_id: int, iscrowd: int = 0) -> dict[str, Any]:
        return {"id": segment_id, "category_id": category_id, "iscrowd": iscrowd}

    ids = [np.zeros((HEIGHT, WIDTH), np.int32) for _ in range(4)]
    ids[0][:10] = 1
    ids[0][10:] = 70_000
    ids[0][4:12, 3:9] = 256
    ids[0][6:20, 14:22] = 257
    ids[0][0:5, 26:32] = 999
    ids[1][:, :16] = 5
    ids[1][12:, 16:] = 6
    ids[3][5:7, 5:30] = 42
    segments = [
        [segment(1, 50), segment(70_000, 41), segment(256, 7), segment(257, 3), segment(999, 3, 1)],
        [segment(5, 50), segment(6, 41)],
        [],
        [segment(42, 7)],
    ]
    return ids, segments


def _write_png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def tiny(tmp_path: Path) -> TinyData:
    data = TinyData(tmp_path / "tiny", *_scenes())
    rng = np.random.default_rng(0)
    contiguous = {3: 0, 7: 1, 41: 2, 50: 3}
    images, panoptic, instances = [], [], []
    for index, (ids, segments) in enumerate(zip(data.ids, data.segments, strict=True)):
        name = f"{index:03d}"
        labels = np.full((HEIGHT, WIDTH), 255, np.uint8)
        for segment in segments:
            mask = ids == segment["id"]
            labels[mask] = contiguous[segment["category_id"]]
            if segment["category_id"] in THINGS:
                rows, columns = np.nonzero(mask)
                box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
                instances.append(
                    {
                        "id": len(instances) + 1,
                        "image_id": 100 + index,
                        "category_id": segment["category_id"],
                        "iscrowd": segment["iscrowd"],
                        "bbox": [int(side) for side in box],
                        "area": int(mask.sum()),
                        "segmentation": bitmasks_to_rles(mask[None])[0],
                    }
                )
        _write_png(data.images / f"{name}.jpg", rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8))
        _write_png(data.panoptic / f"{name}.png", id_to_rgb(ids))
        _write_png(data.sem_seg / f"{name}.png", labels)
        images.append({"id": 100 + index, "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH})
        panoptic.append({"image_id": 100 + index, "file_name": f"{name}.png", "segments_info": segments})
    categories = [
        {"id": i, "name": n, "isthing": int(i in THINGS)} for i, n in sorted({**THINGS, **STUFF}.items(), reverse=True)
    ]
    data.panoptic_json.write_text(
        json.dumps({"images": images, "annotations": panoptic, "categories": categories}), encoding="utf-8"
    )
    things = [c for c in categories if c["isthing"]]
    data.instances_json.write_text(
        json.dumps({"images": images, "annotations": instances, "categories": things}), encoding="utf-8"
    )
    return data


@pytest.fixture
def cfg() -> CfgNode:
    """A configuration that trains on the images as they are, one at a time."""
    cfg = get_cfg()
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 4
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.MIN_SIZE_TRAIN = [HEIGHT]
    cfg.INPUT.FORMAT = "RGB"
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEED = 3
    return cfg


@pytest.fixture(autouse=True)
def _own_catalogs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins with empty catalogs; what it registers is gone after it."""
    monkeypatch.setattr(DatasetCatalog, "_loaders", {})
    monkeypatch.setattr(MetadataCatalog, "_entries", {})
    monkeypatch.setattr(builtin, "_registered", builtin._Registered())
