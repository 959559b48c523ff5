"""The recipes of MaskFormer and of the per-pixel baselines train and evaluate from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mask2former.commands.cli import train_main

RECIPES = Path(__file__).parents[1] / "configs/ade20k/semantic-segmentation"
NUM_CLASSES = 13
TINY = """
    MODEL.DEVICE cpu MODEL.WEIGHTS '' MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64
    MODEL.SEM_SEG_HEAD.NUM_CLASSES 13 MODEL.SEM_SEG_HEAD.CONVS_DIM 32 MODEL.SEM_SEG_HEAD.MASK_DIM 32
    MODEL.MASK_FORMER.HIDDEN_DIM 32 MODEL.MASK_FORMER.NHEADS 4 MODEL.MASK_FORMER.DIM_FEEDFORWARD 32
    MODEL.MASK_FORMER.DEC_LAYERS 2 MODEL.MASK_FORMER.NUM_OBJECT_QUERIES 13 MODEL.MASK_FORMER.TRAIN_NUM_POINTS 64
    DATASETS.TRAIN ('shapes_sem_seg_train',) DATASETS.TEST ('shapes_sem_seg_val',) DATALOADER.NUM_WORKERS 0
    INPUT.MIN_SIZE_TRAIN (64,) INPUT.CROP.SIZE (61,45) INPUT.SIZE_DIVISIBILITY -1 INPUT.MIN_SIZE_TEST 64
    SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 2 SOLVER.LOG_PERIOD 1 TEST.EVAL_PERIOD 0 SEED 3
""".split()  # the mapper's crops have odd sizes


@pytest.fixture(scope="module")
def data_root(draw_shapes: Callable[..., Path]) -> Path:
    return draw_shapes(size=(48, 64))


@pytest.mark.parametrize(
    ("recipe", "losses"),
    [
        ("maskformer_R50_bs16_160k", {"loss_ce", "loss_mask", "loss_dice", "loss_ce_0", "loss_mask_0", "loss_dice_0"}),
        (
            "maskformer_encoder_R50_bs16_160k",
            {"loss_ce", "loss_mask", "loss_dice", "loss_ce_0", "loss_mask_0", "loss_dice_0"},
        ),
        ("per_pixel_baseline_R50_bs16_160k", {"loss_sem_seg"}),
        ("per_pixel_baseline_plus_R50_bs16_160k", {"loss_sem_seg", "loss_sem_seg_0"}),
    ],
)
def test_older_recipe_trains_and_is_evaluated(
    recipe: str, losses: set[str], data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data_root))
    overrides = [value.strip("'") if value == "''" else value for value in TINY]
    arguments = ["--config-file", str(RECIPES / f"{recipe}.yaml"), *overrides, "OUTPUT_DIR", str(tmp_path)]
    assert train_main(arguments) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    last = {key: value for line in lines for key, value in line.items()}
    assert {key for key in last if key.startswith("loss_")} == losses
    assert 0 <= last["sem_seg/mIoU"] <= 100
