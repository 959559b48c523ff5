"""A config with faults of every kind is refused in one message: keys, types, names of parts, sizes, training."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mask2former import build_model, get_cfg
from mask2former.commands.cli import main
from mask2former.config import CfgNode
from mask2former.engine import train
from mask2former.engine.building import find_training_faults
from mask2former.errors import ConfigError
from mask2former.modeling.meta_arch.assembly import find_model_faults

RECIPE = Path(__file__).parents[2] / "configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
FAULTS = {  # key and value, and what is said of it
    "MODEL.BACKBONE.NAME": ("build_resnet_backbon", "did you mean build_resnet_backbone"),
    "MODEL.SEM_SEG_HEAD.NAME": ("Head", "expected one of .*MaskFormerHead"),
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": ("FPN", "expected one of .*MSDeformAttnPixelDecoder"),
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": (0, "expected at least 1, found 0"),
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": ("Masked", "expected one of .*MultiScaleMaskedTransformerDecoder"),
    "MODEL.MASK_FORMER.HIDDEN_DIM": (250, r"expected a multiple of MASK_FORMER\.NHEADS \(8\), found 250"),
    "MODEL.MASK_FORMER.MATCHER": ("Greedy", "expected one of HungarianMatcher; found 'Greedy'"),
    "MODEL.MASK_FORMER.LOSSES": ([["focal", 1.0]], "found 'focal'"),
    "MODEL.MASK_FORMER.POSTPROCESSING": ("infer", "expected one of infer_image"),
    "MODEL.PRECISION": ("float8", "expected one of float32"),
    "SOLVER.OPTIMIZER": ("LION", "must be ADAMW or SGD"),
    "SOLVER.STEPS": ([30, 20], "must increase"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("all", "must be one of full_model"),
    "SOLVER.HOOKS": (["nothing"], "names that modules register, and none did; found 'nothing'"),
    "INPUT.DATASET_MAPPER_NAME": ("coco", "expected one of coco_instance_lsj"),
}


def _config(*keys: str) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_file(RECIPE)
    cfg.MODEL.DEVICE = "cpu"
    cfg.merge_from_dict({key: FAULTS[key][0] for key in keys})
    return cfg


def test_command_says_every_fault_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = "INPUT: {MIN_SIZE_TEST: tall}\nMODEL: {MASK_FORMER: {NUM_QUERIES: 50}}\n"
    (tmp_path / "own.yaml").write_text(f"_BASE_: {RECIPE}\n{own}")
    pairs = [str(part) for key, (value, _) in FAULTS.items() for part in (key, value)]
    output = ["OUTPUT_DIR", str(tmp_path / "out"), "MODEL.DEVICE", "cpu"]
    assert main(["train", "--config-file", str(tmp_path / "own.yaml"), "SOLVER.MAX_ITERS", "5", *pairs, *output]) == 1
    first, *lines = capsys.readouterr().err.strip().splitlines()
    assert first == f"error: {len(FAULTS) + 3} faults in the configuration:"
    assert len(lines) == len(FAULTS) + 3
    assert "unknown key MODEL.MASK_FORMER.NUM_QUERIES; it is called" in lines[1]
    assert "INPUT.MIN_SIZE_TEST must be int" in lines[0]
    assert "unknown key SOLVER.MAX_ITERS; did you mean SOLVER.MAX_ITER" in lines[2]
    for key, (_, message) in FAULTS.items():
        assert re.search(message, next(line for line in lines if key in line)), key
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", FAULTS)
def test_single_fault_is_one_line(key: str, tmp_path: Path) -> None:
    cfg = _config(key)
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    with pytest.raises(ConfigError, match=FAULTS[key][1]) as raised:
        train(cfg)
    assert key in str(raised.value)
    assert "\n" not in str(raised.value)


def test_built_model_says_every_fault_of_its_parts() -> None:
    keys = [key for key in FAULTS if key.startswith("MODEL.")]
    with pytest.raises(ConfigError, match=f"^{len(keys)} faults in the configuration:") as raised:
        build_model(_config(*keys))
    assert all(key in str(raised.value) for key in keys)


def test_sizes_that_contradict_each_other_are_found_behind_an_unknown_backbone() -> None:
    cfg = _config("MODEL.BACKBONE.NAME")
    cfg.merge_from_dict({"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "res5", "MODEL.SEM_SEG_HEAD.CONVS_DIM": 40})
    backbone, decoder, transformer = find_model_faults(cfg)
    assert "MODEL.BACKBONE.NAME" in backbone
    assert "channels divisible by 32, found 40" in decoder
    assert "TRANSFORMER_IN_FEATURE: MultiScaleMaskedTransformerDecoder expects" in transformer


@pytest.mark.parametrize(
    "name",
    [
        "coco/panoptic-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml",
        "ade20k/semantic-segmentation/maskformer_R50_bs16_160k.yaml",
        "ade20k/semantic-segmentation/maskformer_encoder_R50_bs16_160k.yaml",
        "ade20k/semantic-segmentation/per_pixel_baseline_plus_R50_bs16_160k.yaml",
        "ade20k/semantic-segmentation/per_pixel_baseline_R50_bs16_160k.yaml",
        "youtubevis_2021/video_maskformer2_R50_bs16_8ep.yaml",
    ],
)
def test_recipe_has_no_fault(name: str) -> None:
    cfg = get_cfg()
    cfg.merge_from_file(name)
    assert find_model_faults(cfg) == find_training_faults(cfg) == []
