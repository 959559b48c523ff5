"""What the README of a much-used fork tells its users to write runs with ``detectron2.`` replaced in the imports."""

from __future__ import annotations

import functools
import json
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from mask2former.commands.cli import train_main
from mask2former.data import MAPPER_REGISTRY, DatasetCatalog, MetadataCatalog

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
REGISTERED = """
from detectron2.data import MAPPER_REGISTRY

MAPPER_REGISTRY.register(YourDatasetMapper)
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(MAPPER_REGISTRY, "_obj_map", dict(MAPPER_REGISTRY))
    _draw(tmp_path / "data")
    for name, text in (("fork_datasets", REGISTRATION), ("fork_mapper", MAPPER + REGISTERED)):
        (tmp_path / f"{name}.py").write_text(text.replace("detectron2.", "mask2former."))
    config, output = tmp_path / "config.yaml", tmp_path / "out"
    imports = ["--import", "fork_datasets", "--import", "fork_mapper"]
    command = ["--config-file", str(config), "--num-gpus", "1", *imports, "OUTPUT_DIR", str(output), *SMALL]
    try:
        config.write_text(CONFIG)
        assert train_main(command) == 1
        message = capsys.readouterr().err
        assert "13 faults" in message
        named = dict(re.findall(r"unknown key (\S+); it is called (\S+) here", message))
        assert len(named) == 11
        # The other two have no key here: the groups of the norms are fixed, a stride follows from the name of its map.
        config.write_text(_renamed(named, unnamed=("PIXEL_DECODER.NUM_GROUPS", "MASK_FORMER.COMMON_STRIDE")))
        assert train_main([*command, "INPUT.DATASET_MAPPER_NAME", "YourDatasetMapper"]) == 0
        lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
        assert any("sem_seg/mIoU" in line for line in lines)
        log = (output / "log.txt").read_text()
        assert "[Resize(shape=(64, 64)), RandomRotation(" in log
        assert "evaluated after iteration 2 in" in log
        assert "NUM_OBJECT_QUERIES: 10" in (output / "config.yaml").read_text()
    finally:
        for name in ("fork_train", "fork_val"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        for name in ("fork_datasets", "fork_mapper"):
            sys.modules.pop(name, None)


def _renamed(names: dict[str, str], unnamed: tuple[str, ...]) -> str:
    """The config with its unknown keys under the names that the message gives them, and without the ``unnamed``."""
    tree = yaml.safe_load(CONFIG)
    for key in [*names, *(f"MODEL.{key}" for key in unnamed)]:
        *sections, leaf = key.split(".")
        value = functools.reduce(dict.__getitem__, sections, tree).pop(leaf)
        if key in names:
            *sections, leaf = names[key].split(".")
            functools.reduce(lambda node, name: node.setdefault(name, {}), sections, tree)[leaf] = value
    del tree["MODEL"]["PIXEL_DECODER"]
    return str(yaml.safe_dump(tree))
