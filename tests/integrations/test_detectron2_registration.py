"""What makes the models known to detectron2, and what does not import it."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed (it is installed from its repository)")

from detectron2.config import get_cfg
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    Backbone,
    build_model,
)
from detectron2.projects.deeplab import add_deeplab_config

from mask2former import add_maskformer2_config, modeling
from mask2former.config import CfgNode
from mask2former.errors import ConfigError
from mask2former.integrations import detectron2 as integration
from tests.integrations.tiny_detectron2 import SHAPES_CONFIG, detectron2_cfg, tiny_shapes_cfg
from tests.parity import REFERENCE_DIR, load_state_dict_reference

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if not path.name.startswith("Base"))
AS_IN_THE_WORLD = f"""
from detectron2.config import get_cfg
from detectron2.projects.deeplab import add_deeplab_config
from mask2former import add_maskformer2_config
import sys
assert "mask2former.integrations.detectron2" not in sys.modules
cfg = get_cfg()
add_deeplab_config(cfg)
add_maskformer2_config(cfg)
cfg.merge_from_file({str(SHAPES_CONFIG)!r})
cfg.MODEL.DEVICE = "cpu"
from detectron2.modeling import build_model
model = build_model(cfg)
print(type(model).__module__, type(model).__name__)
"""

# A published config file and its base in their layout: all keys, those at their default too, tuples as quoted Python,
# one key twice, and sizes as an expression, which detectron2 evaluates.
PUBLISHED_BASE = """
MODEL:
  BACKBONE:
    FREEZE_AT: 0
    NAME: "build_resnet_backbone"
  WEIGHTS: "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
  PIXEL_MEAN: [123.675, 116.280, 103.530]
  PIXEL_STD: [58.395, 57.120, 57.375]
  RESNETS:
    DEPTH: 50
    STEM_TYPE: "basic"
    STEM_OUT_CHANNELS: 64
    STRIDE_IN_1X1: False
    OUT_FEATURES: ["res2", "res3", "res4", "res5"]
    RES5_MULTI_GRID: [1, 1, 1]
DATASETS:
  TRAIN: ("coco_2017_train_panoptic",)
  TEST: ("coco_2017_val_panoptic_with_sem_seg",)
SOLVER:
  IMS_PER_BATCH: 16
  BASE_LR: 0.0001
  STEPS: (327778, 355092)
  MAX_ITER: 368750
  WARMUP_FACTOR: 1.0
  WARMUP_ITERS: 10
  WEIGHT_DECAY: 0.05
  OPTIMIZER: "ADAMW"
  BACKBONE_MULTIPLIER: 0.1
  CLIP_GRADIENTS:
    ENABLED: True
    CLIP_TYPE: "full_model"
    CLIP_VALUE: 0.01
    NORM_TYPE: 2.0
  AMP:
    ENABLED: True
INPUT:
  IMAGE_SIZE: 1024
  MIN_SCALE: 0.1
  MAX_SCALE: 2.0
  MIN_SIZE_TRAIN: !!python/object/apply:eval ["[int(x * 0.1 * 640) for x in range(5, 21)]"]
  MIN_SIZE_TRAIN_SAMPLING: "choice"
  FORMAT: "RGB"
  DATASET_MAPPER_NAME: "coco_panoptic_lsj"
TEST:
  EVAL_PERIOD: 5000
DATALOADER:
  FILTER_EMPTY_ANNOTATIONS: True
  NUM_WORKERS: 4
VERSION: 2
"""
PUBLISHED = """
_BASE_: base.yaml
MODEL:
  META_ARCHITECTURE: "MaskFormer"
  SEM_SEG_HEAD:
    NAME: "MaskFormerHead"
    IN_FEATURES: ["res2", "res3", "res4", "res5"]
    IGNORE_VALUE: 255
    NUM_CLASSES: 133
    LOSS_WEIGHT: 1.0
    CONVS_DIM: 256
    MASK_DIM: 256
    NORM: "GN"
    PIXEL_DECODER_NAME: "MSDeformAttnPixelDecoder"
    IN_FEATURES: ["res2", "res3", "res4", "res5"]
    DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES: ["res3", "res4", "res5"]
    COMMON_STRIDE: 4
    TRANSFORMER_ENC_LAYERS: 6
  MASK_FORMER:
    TRANSFORMER_DECODER_NAME: "MultiScaleMaskedTransformerDecoder"
    TRANSFORMER_IN_FEATURE: "multi_scale_pixel_decoder"
    DEEP_SUPERVISION: True
    NO_OBJECT_WEIGHT: 0.1
    CLASS_WEIGHT: 2.0
    MASK_WEIGHT: 5.0
    DICE_WEIGHT: 5.0
    HIDDEN_DIM: 256
    NUM_OBJECT_QUERIES: 100
    NHEADS: 8
    DROPOUT: 0.0
    DIM_FEEDFORWARD: 2048
    ENC_LAYERS: 0
    PRE_NORM: False
    ENFORCE_INPUT_PROJ: False
    SIZE_DIVISIBILITY: 32
    DEC_LAYERS: 10
    TRAIN_NUM_POINTS: 12544
    OVERSAMPLE_RATIO: 3.0
    IMPORTANCE_SAMPLE_RATIO: 0.75
    TEST:
      SEMANTIC_ON: True
      INSTANCE_ON: True
      PANOPTIC_ON: True
      OVERLAP_THRESHOLD: 0.8
      OBJECT_MASK_THRESHOLD: 0.8
"""


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_lines_of_detectron2_projects_build_a_model() -> None:
    assert _run(AS_IN_THE_WORLD).split() == ["mask2former.integrations.detectron2.models", "MaskFormer"]


def test_files_in_the_published_layout_build_the_published_model(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(PUBLISHED_BASE)
    (tmp_path / "recipe.yaml").write_text(PUBLISHED)
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    cfg.merge_from_file(str(tmp_path / "recipe.yaml"))
    recipe = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
    for key, value in json.loads((REFERENCE_DIR / "recipes.json").read_text())[recipe].items():
        assert _plain(functools.reduce(getattr, key.split("."), cfg)) == value, key
    assert _plain(cfg.INPUT.MIN_SIZE_TRAIN) == [int(size * 0.1 * 640) for size in range(5, 21)]
    cfg.MODEL.DEVICE = "cpu"
    expected = load_state_dict_reference("coco_panoptic_r50")["state_dict"]
    found = build_model(cfg).state_dict()
    assert {name: list(tensor.shape) for name, tensor in found.items()} == {
        name: shape for name, (shape, _) in expected.items()
    }


def test_our_own_imports_leave_detectron2_alone() -> None:
    _run(
        "import mask2former, mask2former.commands.cli, mask2former.engine, mask2former.data, mask2former.evaluation\n"
        "from mask2former import Predictor, add_maskformer2_config, build_model, get_cfg\n"
        "add_maskformer2_config(get_cfg())\n"
        "import sys\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'detectron2']"
    )


def test_importing_the_integration_registers() -> None:
    _run(
        "import mask2former.integrations.detectron2\n"
        "from detectron2.modeling import META_ARCH_REGISTRY\n"
        "assert 'MaskFormer' in META_ARCH_REGISTRY"
    )


def test_config_derived_from_detectron2s_registers() -> None:
    _run(
        "from detectron2.config import CfgNode, get_cfg\n"
        "class Mine(CfgNode): pass\n"
        "from mask2former import add_maskformer2_config\n"
        "cfg = Mine(get_cfg())\n"
        "add_maskformer2_config(cfg)\n"
        "from detectron2.modeling import META_ARCH_REGISTRY\n"
        "assert 'MaskFormer' in META_ARCH_REGISTRY"
    )


def test_registries_hold_the_published_names() -> None:
    assert {"MaskFormer", "VideoMaskFormer"} <= dict(META_ARCH_REGISTRY).keys()
    assert {"D2SwinTransformer", "build_timm_backbone"} <= dict(BACKBONE_REGISTRY).keys()
    heads = {"MaskFormerHead", "PerPixelBaselineHead", "PerPixelBaselinePlusHead"}
    pixel_decoders = {"MSDeformAttnPixelDecoder", "BasePixelDecoder", "TransformerEncoderPixelDecoder"}
    assert heads | pixel_decoders <= dict(SEM_SEG_HEADS_REGISTRY).keys()
    decoders = {"MultiScaleMaskedTransformerDecoder", "StandardTransformerDecoder"}
    assert decoders <= dict(integration.TRANSFORMER_DECODER_REGISTRY).keys()


def test_registered_classes_are_ours() -> None:
    for name in ("MaskFormer", "MaskFormerHead", "MSDeformAttnPixelDecoder", "PerPixelBaselinePlusHead"):
        assert issubclass(getattr(integration, name), getattr(modeling, name))
    assert issubclass(modeling.backbone.D2SwinTransformer, Backbone)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_config_files_mean_the_same_in_detectron2(path: Path) -> None:
    from mask2former.config import get_cfg as our_cfg

    theirs, ours = detectron2_cfg(path), our_cfg()
    ours.merge_from_file(path)

    def differing(mine: CfgNode, other: CfgNode, prefix: str = "") -> list[str]:
        found = []
        for key, value in mine.items():
            if key not in other:
                found.append(prefix + key)
            elif isinstance(value, dict):
                found += differing(value, other[key], f"{prefix}{key}.")
            elif _plain(value) != _plain(other[key]):
                found.append(prefix + key)
        return found

    assert differing(ours, theirs) == []


def _plain(value: object) -> object:
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def test_added_keys_leave_those_of_detectron2() -> None:
    cfg = get_cfg()
    add_deeplab_config(cfg)
    before = cfg.clone()
    add_maskformer2_config(cfg)
    assert cfg.SOLVER.BASE_LR == before.SOLVER.BASE_LR
    assert type(cfg.MODEL.MASK_FORMER.TEST) is type(before)
    assert before.MODEL.SEM_SEG_HEAD.items() <= cfg.MODEL.SEM_SEG_HEAD.items()


def test_unknown_part_is_named() -> None:
    for key in ("BACKBONE.NAME", "SEM_SEG_HEAD.NAME", "SEM_SEG_HEAD.PIXEL_DECODER_NAME"):
        with pytest.raises(ConfigError, match=f"MODEL.{key}.*NoSuchPart"):
            build_model(tiny_shapes_cfg(f"MODEL.{key}", "NoSuchPart"))
