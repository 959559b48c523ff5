from __future__ import annotations

import functools
from pathlib import Path

import pytest

from mask2former.config import CfgNode, add_maskformer2_config, add_maskformer2_video_config, get_cfg
from mask2former.config.bounds import BOUNDS
from mask2former.errors import ConfigError


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_base_is_overridden_by_the_file_that_names_it(tmp_path: Path) -> None:
    _write(tmp_path / "base.yaml", "SOLVER: {BASE_LR: 0.5, MAX_ITER: 7}\n")
    leaf = _write(tmp_path / "leaf.yaml", "_BASE_: base.yaml\nSOLVER: {MAX_ITER: 9}\n")
    cfg = get_cfg()
    cfg.merge_from_file(leaf)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (0.5, 9)
    assert CfgNode.load_yaml_with_base(str(leaf)) == {"SOLVER": {"BASE_LR": 0.5, "MAX_ITER": 9}}


def test_published_size_list_is_computed(tmp_path: Path) -> None:
    tag = '!!python/object/apply:eval ["[int(x * 0.1 * 640) for x in range(5, 21)]"]'
    cfg = get_cfg()
    cfg.merge_from_file(_write(tmp_path / "c.yaml", f"INPUT:\n  MIN_SIZE_TRAIN: {tag}\n"))
    assert [int(x * 0.1 * 640) for x in range(5, 21)] == cfg.INPUT.MIN_SIZE_TRAIN


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch pwned']",
        '!!python/object/apply:eval [\'__import__("os").system("touch pwned")\']',
        '!!python/object/apply:eval [\'[open("pwned", "w") for x in range(3)]\']',
        "!!python/object/apply:eval ['[x for x in range(10**9)]']",
        "!!python/object/apply:eval ['[x / 0 for x in range(3)]']",
        "!!python/object/new:tuple [[1]]",
        "!!python/name:os.system",
    ],
)
def test_yaml_never_executes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = _write(tmp_path / "evil.yaml", f"INPUT:\n  MIN_SIZE_TRAIN: {value}\n")
    with pytest.raises(ConfigError, match=r"evil\.yaml"):
        get_cfg().merge_from_file(path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL: {DEVCE: cpu}", r"c\.yaml: unknown key MODEL\.DEVCE; did you mean MODEL\.DEVICE"),
        ("SOLVER: {MAX_ITER: many}", r"SOLVER\.MAX_ITER must be int \(now 40000\), found str 'many'"),
        ("MODEL: cpu", r"MODEL holds keys"),
        ("- a\n- b", r"expected KEY: VALUE pairs, found list"),
        ("a: [", r"not a readable config file"),
        ("_BASE_: c.yaml", r"inherits from itself"),
        ("_BASE_: absent.yaml", r"absent\.yaml.*No such file"),
    ],
)
def test_wrong_file_is_named_with_its_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_cfg().merge_from_file(_write(tmp_path / "c.yaml", text))


def test_moved_key_is_suggested_by_its_last_part() -> None:
    with pytest.raises(ConfigError, match=r"MODEL\.MASK_FORMER\.NHEADS"):
        get_cfg().merge_from_list(["MODEL.NHEADS", 4])


def test_command_line_options_are_read_as_literals() -> None:
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.BASE_LR", "1e-3", "DATASETS.TRAIN", "('a',)", "TEST.EVAL_PERIOD", "5"])
    assert (cfg.SOLVER.BASE_LR, list(cfg.DATASETS.TRAIN), cfg.TEST.EVAL_PERIOD) == (0.001, ["a"], 5)
    with pytest.raises(ConfigError, match="'SEED' has no value"):
        cfg.merge_from_list(["SEED"])


def test_yaml_exponent_without_point_is_a_number(tmp_path: Path) -> None:
    cfg = get_cfg()
    cfg.merge_from_file(_write(tmp_path / "c.yaml", "SOLVER: {BASE_LR: 1e-4}"))
    assert cfg.SOLVER.BASE_LR == 1e-4


def test_defaults_are_not_shared_between_configurations() -> None:
    first = get_cfg()
    first.SOLVER.STEPS.append(1)
    first.MODEL.SWIN.DEPTHS[0] = 99
    assert get_cfg().SOLVER.STEPS == [30000]
    assert get_cfg().MODEL.SWIN.DEPTHS == [2, 2, 6, 2]


def test_added_keys_keep_what_the_configuration_has() -> None:
    cfg = CfgNode({"MODEL": CfgNode({"DEVICE": "cpu"}), "SOLVER": CfgNode({"OPTIMIZER": "SGD"})})
    add_maskformer2_config(cfg)
    add_maskformer2_video_config(cfg)
    assert cfg.SOLVER.OPTIMIZER == "SGD"
    assert cfg.MODEL.DEVICE == "cpu"
    assert cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES == 100
    assert cfg.INPUT.SAMPLING_FRAME_NUM == 2


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.SEM_SEG_HEAD.CONVS_DIM", "-1", r"must lie in 1..1.04858e\+06, found -1"),
        ("MODEL.MASK_FORMER.NHEADS", "0", "found 0"),
        ("MODEL.SWIN.DEPTHS", "[2, 2, 0, 2]", "found 0"),
        ("MODEL.SWIN.MLP_RATIO", "1e30", r"found 1e\+30"),
        ("MODEL.MASK_FORMER.DEC_LAYERS", "2147483648", "must lie in 0..1000"),
        ("SOLVER.BETAS", "[0.9, 1]", "found 1"),
        ("INPUT.MAX_SCALE", "1e30", r"found 1e\+30"),
        ("MODEL.PIXEL_MEAN", "[1.0, 2.0, None]", "must be a list of numbers .*, found None in it"),
    ],
)
def test_values_that_nothing_can_be_built_of_are_refused(key: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_cfg().merge_from_list([key, value])


def test_keys_with_bounds_exist_and_their_defaults_lie_within() -> None:
    cfg = get_cfg()
    cfg.merge_from_list([part for key in BOUNDS for part in (key, functools.reduce(getattr, key.split("."), cfg))])
