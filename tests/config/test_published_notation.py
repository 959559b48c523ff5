"""The published files write lists as text and tag size lists for evaluation: they load to the published values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mask2former.config import get_cfg
from mask2former.modeling.meta_arch.assembly import find_model_faults

REFERENCE = Path(__file__).parents[1] / "data" / "reference"
RECIPES = {
    **json.loads((REFERENCE / "recipes.json").read_text()),
    **{f"oneformer/{k}": v for k, v in json.loads((REFERENCE / "oneformer" / "recipes.json").read_text()).items()},
}
SIZE_LISTS = {
    str([int(x * 0.1 * side) for x in range(5, stop)]): f"[int(x * 0.1 * {side}) for x in range(5, {stop})]"
    for side in (512, 640, 1024, 2048)
    for stop in (21, 26)
}


def _as_text(value: Any) -> str:
    """As the published files write a value: tuples as text, size lists as expressions, text in quotes."""
    if str(value) in SIZE_LISTS:
        return f'!!python/object/apply:eval ["{SIZE_LISTS[str(value)]}"]'
    if isinstance(value, list):
        return str(tuple(value))
    return f'"{value}"' if isinstance(value, str) else str(value)


def _tree(values: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *parents, leaf = key.split(".")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[leaf] = _as_text(value)
    return tree


def _lines(tree: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_lines(value, f"{indent}  ")]
        else:
            lines.append(f"{indent}{key}: {value}")
    return lines


def _write_recipe(folder: Path, values: dict[str, Any], *, ending: str = "\n", comment: str = "") -> Path:
    """Three files, each the base of the next; what the last two say, the first says otherwise."""
    keys = sorted(values)
    thirds = [{key: values[key] for key in keys[part::3]} for part in range(3)]
    thirds[0] = {**thirds[0], "SOLVER.MAX_ITER": 7}
    thirds[2] = {**thirds[2], "SOLVER.MAX_ITER": values["SOLVER.MAX_ITER"]}
    for number, part in enumerate(thirds):
        base = [f"_BASE_: ../{number - 1}/base.yaml"] if number else []
        text = ending.join(line + comment for line in [*base, *_lines(_tree(part)), ""])
        (folder / str(number)).mkdir()
        (folder / str(number) / "base.yaml").write_bytes(text.encode())
    return folder / "2" / "base.yaml"


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_recipe_in_published_notation_loads_to_published_values(tmp_path: Path, recipe: str) -> None:
    cfg = get_cfg()
    cfg.merge_from_file(_write_recipe(tmp_path, RECIPES[recipe]))
    for key, value in RECIPES[recipe].items():
        node: Any = cfg
        for part in key.split("."):
            node = node[part]
        assert json.loads(json.dumps(node)) == value, key


@pytest.mark.parametrize(
    "change",
    [
        {"ending": "\r\n"},
        {"comment": "  # a comment\twith tabs\t"},
        {"comment": "\t# a tab before it"},
        {"ending": "\r\n\t# a line of its own\r\n"},
        {"comment": " \t "},
    ],
)
def test_line_ends_and_tabs_change_nothing(tmp_path: Path, change: dict[str, str]) -> None:
    recipe = "cityscapes/panoptic-segmentation/swin/maskformer2_swin_tiny_bs16_90k.yaml"
    plain, changed = get_cfg(), get_cfg()
    for name, cfg, options in (("a", plain, {}), ("b", changed, change)):
        (tmp_path / name).mkdir()
        cfg.merge_from_file(_write_recipe(tmp_path / name, RECIPES[recipe], **options))
    assert changed == plain
    assert changed != get_cfg()


# As MaskFormer's own files have it: no name of a decoder, for it has one alone.
MASKFORMER_BASE = """MODEL:
  BACKBONE:
    FREEZE_AT: 0
    NAME: "build_resnet_backbone"
  WEIGHTS: "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
  PIXEL_MEAN: [123.675, 116.280, 103.530]
  PIXEL_STD: [58.395, 57.120, 57.375]
  RESNETS:
    DEPTH: 50
    STEM_TYPE: "basic"  # not used
    STEM_OUT_CHANNELS: 64
    STRIDE_IN_1X1: False
    OUT_FEATURES: ["res2", "res3", "res4", "res5"]
    # NORM: "SyncBN"
    RES5_MULTI_GRID: [1, 1, 1]  # not used
DATASETS:
  TRAIN: ("ade20k_sem_seg_train",)
  TEST: ("ade20k_sem_seg_val",)
SOLVER:
  IMS_PER_BATCH: 16
  BASE_LR: 0.0001
  MAX_ITER: 160000
  WARMUP_FACTOR: 1.0
  WARMUP_ITERS: 0
  WEIGHT_DECAY: 0.0001
  OPTIMIZER: "ADAMW"
  LR_SCHEDULER_NAME: "WarmupPolyLR"
  BACKBONE_MULTIPLIER: 0.1
  CLIP_GRADIENTS:
    ENABLED: True
    CLIP_TYPE: "full_model"
    CLIP_VALUE: 0.01
    NORM_TYPE: 2.0
INPUT:
  MIN_SIZE_TRAIN: !!python/object/apply:eval ["[int(x * 0.1 * 512) for x in range(5, 21)]"]
  MIN_SIZE_TRAIN_SAMPLING: "choice"
  MIN_SIZE_TEST: 512
  MAX_SIZE_TRAIN: 2048
  MAX_SIZE_TEST: 2048
  CROP:
    ENABLED: True
    TYPE: "absolute"
    SIZE: (512, 512)
    SINGLE_CATEGORY_MAX_AREA: 1.0
  COLOR_AUG_SSD: True
  SIZE_DIVISIBILITY: 512  # used in dataset mapper
  FORMAT: "RGB"
  DATASET_MAPPER_NAME: "mask_former_semantic"
TEST:
  EVAL_PERIOD: 5000
DATALOADER:
  FILTER_EMPTY_ANNOTATIONS: True
  NUM_WORKERS: 4
VERSION: 2
"""
MASKFORMER = """_BASE_: Base-ADE20K-150.yaml
MODEL:
  META_ARCHITECTURE: "MaskFormer"
  SEM_SEG_HEAD:
    NAME: "MaskFormerHead"
    IN_FEATURES: ["res2", "res3", "res4", "res5"]
    IGNORE_VALUE: 255
    NUM_CLASSES: 150
    COMMON_STRIDE: 4  # not used, hard-coded
    LOSS_WEIGHT: 1.0
    CONVS_DIM: 256
    MASK_DIM: 256
    NORM: "GN"
    {pixel_decoder}
  MASK_FORMER:
    TRANSFORMER_IN_FEATURE: "{feature}"
    DEEP_SUPERVISION: True
    NO_OBJECT_WEIGHT: 0.1
    DICE_WEIGHT: 1.0
    MASK_WEIGHT: 20.0
    HIDDEN_DIM: 256
    NUM_OBJECT_QUERIES: 100
    NHEADS: 8
    DROPOUT: 0.1
    DIM_FEEDFORWARD: 2048
    ENC_LAYERS: 0
    DEC_LAYERS: 6
    PRE_NORM: False
"""
ENCODER = 'PIXEL_DECODER_NAME: "TransformerEncoderPixelDecoder"\n    TRANSFORMER_ENC_LAYERS: 6'


@pytest.mark.parametrize(
    ("recipe", "feature", "pixel_decoder"),
    [("maskformer_R50", "res5", ""), ("maskformer_encoder_R50", "transformer_encoder", ENCODER)],
    ids=["pyramid", "encoder"],
)
def test_own_files_of_maskformer_load_to_its_model(
    tmp_path: Path, recipe: str, feature: str, pixel_decoder: str
) -> None:
    (tmp_path / "Base-ADE20K-150.yaml").write_text(MASKFORMER_BASE)
    text = MASKFORMER.format(feature=feature, pixel_decoder=pixel_decoder)
    (tmp_path / "c.yaml").write_text(text)
    found, expected = get_cfg(), get_cfg()
    found.merge_from_file(tmp_path / "c.yaml")
    expected.merge_from_file(f"ade20k/semantic-segmentation/{recipe}_bs16_160k.yaml")
    assert found.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME == "StandardTransformerDecoder"
    # The weights of its losses are its own: a focal loss of 20 and dice of 1, where ours are those of Mask2Former.
    for key in ("MASK_WEIGHT", "DICE_WEIGHT", "CLASS_WEIGHT"):
        found.MODEL.MASK_FORMER[key] = expected.MODEL.MASK_FORMER[key]
    unused = {"TEST"} | ({"TRANSFORMER_ENC_LAYERS"} if feature == "res5" else set())
    names = ("BACKBONE", "RESNETS", "MASK_FORMER", "SEM_SEG_HEAD")
    for node in names:
        differing = {
            key: (value, expected.MODEL[node][key])
            for key, value in found.MODEL[node].items()
            if key not in unused and value != expected.MODEL[node][key]
        }
        assert not differing, node
    assert found.MODEL.MASK_FORMER.TEST.SEMANTIC_ON
    differing = {key for key, value in found.SOLVER.items() if value != expected.SOLVER[key]}
    assert differing <= {"WEIGHT_DECAY", "AMP"}  # their files train in float32
    assert found.INPUT.MIN_SIZE_TRAIN == expected.INPUT.MIN_SIZE_TRAIN
    assert found.INPUT.CROP == expected.INPUT.CROP
    assert find_model_faults(found) == []


def test_decoder_of_a_recipe_stays_where_a_single_key_changes(tmp_path: Path) -> None:
    cfg = get_cfg()
    cfg.merge_from_file("ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml")
    cfg.merge_from_list(["MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "res5"])
    assert cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME == "MultiScaleMaskedTransformerDecoder"


def test_recipes_hold_each_form_of_the_notation() -> None:
    values = [value for recipe in RECIPES.values() for value in recipe.values()]
    texts = [_as_text(value) for value in values]
    found: dict[str, Callable[[str], bool]] = {
        "sizes": lambda text: text.startswith("!!python"),
        "one name": lambda text: text.startswith("('") and text.endswith("',)"),
        "numbers": lambda text: text.startswith("(") and text[1].isdigit(),
    }
    assert all(any(is_form(text) for text in texts) for is_form in found.values())


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("SOLVER.WARMUP_FACTOR", "1.0 / 1000", 0.001),
        ("SOLVER.BASE_LR", "0.0001 * 16 / 4", 0.0004),
        ("SOLVER.BASE_LR", "1e-4", 1e-4),
        ("SOLVER.MAX_ITER", "100 * 90", 9000),
        ("INPUT.MIN_SIZE_TRAIN", "(640,)", [640]),
        ("INPUT.MIN_SIZE_TRAIN", "(5 * 100, 640)", [500, 640]),
        ("MODEL.PIXEL_STD", "[1, 1.0, 255 / 5]", [1, 1.0, 51.0]),
        ("OUTPUT_DIR", "2024-10-11", "2024-10-11"),  # neither a date nor a difference
        ("OUTPUT_DIR", "'a b'", "a b"),
        ("SOLVER.WEIGHT_DECAY_BIAS", "None", None),
    ],
)
def test_text_is_read_alike_in_files_and_on_the_command_line(
    tmp_path: Path, key: str, text: str, value: object
) -> None:
    tree = "{" + ": {".join(key.split(".")) + f": {json.dumps(text)}" + "}" * (key.count(".") + 1)
    (tmp_path / "c.yaml").write_text(tree)
    from_file, from_list, from_dict = get_cfg(), get_cfg(), get_cfg()
    from_file.merge_from_file(tmp_path / "c.yaml")
    from_list.merge_from_list([key, text])
    from_dict.merge_from_dict({key: text})
    for cfg in (from_file, from_list, from_dict):
        node: Any = cfg
        for part in key.split("."):
            node = node[part]
        assert node == value
        assert isinstance(node, type(value))


@pytest.mark.parametrize("text", ["__import__('os').system('touch pwned')", "(lambda: 1)()", "9 ** 9 ** 9 ** 9"])
def test_text_is_never_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"SOLVER\.MAX_ITER must be int"):
        get_cfg().merge_from_list(["SOLVER.MAX_ITER", text])
    assert not list(tmp_path.iterdir())
