"""What the README of a much-used fork tells its users to write runs with ``detectron2.`` replaced in the imports."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from mask2former import get_cfg
from mask2former.data import DatasetCatalog, MetadataCatalog
from mask2former.engine import train
from mask2former.errors import ConfigError

RECIPE = Path(__file__).parents[2] / "configs/ade20k/semantic-segmentation/maskformer_R50_bs16_160k.yaml"
REGISTRATION = """
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import load_sem_seg
import os

CATEGORIES = [{"name": "background", "id": 0, "color": (0, 0, 0)}, {"name": "class1", "id": 1, "color": (255, 0, 0)}]

def register_all(root):
    for name, dirname in [("train", "train"), ("val", "valid")]:
        image_dir, gt_dir = os.path.join(root, dirname, "images"), os.path.join(root, dirname, "masks")
        name = f"fork_{name}"
        DatasetCatalog.register(
            name, lambda x=image_dir, y=gt_dir: load_sem_seg(y, x, gt_ext="png", image_ext="jpg")
        )
        MetadataCatalog.get(name).set(
            stuff_classes=[k["name"] for k in CATEGORIES],
            stuff_colors=[k["color"] for k in CATEGORIES],
            image_root=image_dir,
            sem_seg_root=gt_dir,
            evaluator_type="sem_seg",
            ignore_label=255,
            stuff_dataset_id_to_contiguous_id={k["id"]: i for i, k in enumerate(CATEGORIES)},
        )

register_all(os.getenv("DETECTRON2_DATASETS", "datasets"))
"""
MAPPER = """
from mask2former.data.dataset_mappers.mask_former_semantic_dataset_mapper import (
    MaskFormerSemanticDatasetMapper,
)
import detectron2.data.transforms as T

class YourDatasetMapper(MaskFormerSemanticDatasetMapper):
    def __init__(self, cfg, is_train=True):
        super().__init__(cfg, is_train)
        self.augmentations = [
            T.Resize((64, 64)),
            T.RandomRotation(angle=[-180, 180], sample_style="range", expand=False),
            T.RandomCrop("absolute", (64, 64)),
        ]
"""
CONFIG = f"""
_BASE_: "{RECIPE}"
MODEL:
  MASK_FORMER:
    NUM_QUERIES: 10
    TRANSFORMER_DECODER_NAME: "StandardTransformerDecoder"
    TRANSFORMER_IN_FEATURE: "res5"
    COMMON_STRIDE: 32
    NUM_CLASSES: 2
  PIXEL_DECODER:
    NAME: "BasePixelDecoder"
    IN_FEATURES: ["res2", "res3", "res4", "res5"]
    COMMON_STRIDE: 4
    CONVS_DIM: 32
    MASK_DIM: 32
    NORM: "GN"
    NUM_GROUPS: 32
    USE_CHECKPOINT: False
    IGNORE_VALUE: 255
DATASETS:
  TRAIN: ("fork_train",)
  TEST: ("fork_val",)
SOLVER:
  IMS_PER_BATCH: 2
  BASE_LR: 0.0001
  MAX_ITER: 2
  STEPS: (60000, 80000)
  WARMUP_FACTOR: 1.0 / 1000
  WARMUP_METHOD: "linear"
  EVAL_PERIOD: 5000
INPUT:
  MIN_SIZE_TRAIN: (640, 672, 704, 736, 768, 800)
  MIN_SIZE_TEST: 64
  MASK_FORMAT: "polygon"
DATALOADER:
  NUM_WORKERS: 0
  REPEAT_THRESHOLD: 0.0
"""
SMALL = """
    MODEL.DEVICE cpu MODEL.WEIGHTS '' MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64 SEED 3
    MODEL.MASK_FORMER.HIDDEN_DIM 32 MODEL.MASK_FORMER.NHEADS 4 MODEL.MASK_FORMER.DIM_FEEDFORWARD 32
    MODEL.MASK_FORMER.DEC_LAYERS 2 MODEL.MASK_FORMER.TRAIN_NUM_POINTS 64
""".split()


def _import(folder: Path, name: str, text: str) -> object:
    (folder / f"{name}.py").write_text(text.replace("detectron2.", "mask2former."))
    return importlib.import_module(name)


def _draw(root: Path) -> None:
    for part in ("train", "valid"):
        for kind in ("images", "masks"):
            (root / part / kind).mkdir(parents=True)
        for number in range(2):
            labels = np.zeros((48, 64), np.uint8)
            labels[10:30, 20 + number : 50] = 1
            cv2.imwrite(str(root / part / "masks" / f"{number}.png"), labels)
            cv2.imwrite(str(root / part / "images" / f"{number}.jpg"), np.stack([labels * 200] * 3, axis=-1))


def test_fork_readme_trains_once_its_unknown_keys_have_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    monkeypatch.syspath_prepend(str(tmp_path))
    _draw(tmp_path / "data")
    _import(tmp_path, "fork_datasets", REGISTRATION)
    mapper_class = _import(tmp_path, "fork_mapper", MAPPER).YourDatasetMapper  # type: ignore[attr-defined]
    try:
        (tmp_path / "config.yaml").write_text(CONFIG)
        cfg = get_cfg()
        with pytest.raises(ConfigError) as caught:
            cfg.merge_from_file(tmp_path / "config.yaml")
        named = dict(re.findall(r"unknown key (\S+); it is called (\S+) here", str(caught.value)))
        assert len(named) == 12
        assert str(caught.value).startswith("13 faults")  # and the groups of the norms, which are fixed
        named["MODEL.PIXEL_DECODER.NUM_GROUPS"] = ""
        options = _renamed(tmp_path, named)
        cfg.merge_from_file(RECIPE)
        cfg.merge_from_list([*options, "OUTPUT_DIR", str(tmp_path / "out")])
        assert cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES == 10
        train(cfg, mapper=mapper_class(cfg, True))
        lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.json").read_text().splitlines()]
        assert any("sem_seg/mIoU" in line for line in lines)
    finally:
        for name in ("fork_train", "fork_val"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        for name in ("fork_datasets", "fork_mapper"):
            sys.modules.pop(name, None)


def _renamed(folder: Path, named: dict[str, str]) -> list[str]:
    """The options of the config with its unknown keys under the names that the message gives them."""
    import yaml

    def leaves(tree: dict[str, object], prefix: str = "") -> dict[str, object]:
        found: dict[str, object] = {}
        for key, value in tree.items():
            found.update(leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
        return found

    content = leaves(yaml.safe_load((folder / "config.yaml").read_text()))
    del content["_BASE_"]
    # The stride of the queries' map has no key of its own: both strides lead to one key, and the decoder's counts.
    pairs = [(named.get(key, key), value) for key, value in content.items() if key != "MODEL.MASK_FORMER.COMMON_STRIDE"]
    return [str(part) for key, value in pairs if key for part in (key, value)] + SMALL
