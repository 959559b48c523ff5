"""All that is wrong with a config stands in one message; what has no effect is said; epochs stand beside iterations."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from mask2former.config import CfgNode, get_cfg
from mask2former.config.keys import accepted_keys, foreign_names, read_keys
from mask2former.errors import ConfigError


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


FORK_CONFIG = """
MODEL:
  MASK_FORMER: {NUM_QUERIES: 100, COMMON_STRIDE: 32, NUM_CLASSES: 5, TRANSFORMER_IN_FEATURE: "res5"}
  PIXEL_DECODER:
    NAME: "BasePixelDecoder"
    IN_FEATURES: ["res2", "res3", "res4", "res5"]
    NUM_GROUPS: 32
    USE_CHECKPOINT: False
SOLVER:
  EVAL_PERIOD: 5000
  WARMUP_FACTOR: 1.0 / 1000
  STEPS: (60000, 80000)
  MAX_ITER: many
"""


def test_all_faults_stand_in_one_message(tmp_path: Path) -> None:
    base = _write(tmp_path / "base.yaml", "MODEL: {DEVCE: cpu}\nINPUT: 5\n")
    leaf = _write(tmp_path / "leaf.yaml", f"_BASE_: base.yaml\n{FORK_CONFIG}")
    with pytest.raises(ConfigError) as caught:
        get_cfg().merge_from_file(leaf)
    message = str(caught.value)
    assert message.startswith("11 faults in the configuration:")
    for fault in (
        f"{base}: unknown key MODEL.DEVCE; did you mean MODEL.DEVICE",
        f"{base}: INPUT holds keys",
        f"{leaf}: unknown key MODEL.MASK_FORMER.NUM_QUERIES; it is called MODEL.MASK_FORMER.NUM_OBJECT_QUERIES here",
        "MODEL.MASK_FORMER.COMMON_STRIDE; the stride is that of the map which",
        "MODEL.MASK_FORMER.NUM_CLASSES; it is called MODEL.SEM_SEG_HEAD.NUM_CLASSES here",
        "MODEL.PIXEL_DECODER.NAME; it is called MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME here",
        "MODEL.PIXEL_DECODER.IN_FEATURES; it is called MODEL.SEM_SEG_HEAD.IN_FEATURES here",
        "MODEL.PIXEL_DECODER.NUM_GROUPS; the group norms of the pixel decoder always have 32 groups",
        "MODEL.PIXEL_DECODER.USE_CHECKPOINT; it is called MODEL.MASK_FORMER.USE_CHECKPOINT here",
        "SOLVER.EVAL_PERIOD; it is called TEST.EVAL_PERIOD here",
        "SOLVER.MAX_ITER must be int (now 40000), found str 'many'",
    ):
        assert fault in message


def test_nothing_is_merged_where_something_is_wrong() -> None:
    cfg = get_cfg()
    with pytest.raises(ConfigError):
        cfg.merge_from_list(["MODEL.DEVICE", "cpu", "SEED", "none"])
    assert cfg == get_cfg()


def test_message_stays_short_whatever_the_number_of_faults(tmp_path: Path) -> None:
    lines = [f"{'K' * 100}{number}: {'v' * 100}" for number in range(2000)]
    with pytest.raises(ConfigError, match=r"^2000 faults(.|\n)*and 1970 more$") as caught:
        get_cfg().merge_from_file(_write(tmp_path / "c.yaml", "\n".join(lines)))
    assert len(str(caught.value)) < 20_000


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("DATASETS.TRAIN", "('coco_2017_train')", r"must be list .*written \['coco_2017_train'\]"),
        ("INPUT.MIN_SIZE_TRAIN", ["a"], "must be a list of numbers"),
        ("MODEL.SWIN.DEPTHS", [2, [2]], "must be a list of numbers"),
        ("SOLVER.BASE_LR", float("nan"), "must be a number, found nan"),
        ("SOLVER.BASE_LR", True, "must be float"),
        ("SOLVER.MAX_ITER", 1.5, "must be int"),
        ("SOLVER.MAX_ITER", None, "must be int"),
        ("SOLVER.MAX_ITER", 10**40, "must lie below"),
        ("SOLVER.WEIGHT_DECAY_BIAS", "much", "must be float"),
        ("MODEL.DEVICE", ["cuda"], "must be str"),
        ("MODEL.MASK_FORMER.TEST.INSTANCE_ON", "maybe", "must be bool"),
    ],
)
def test_wrong_type_is_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_cfg().merge_from_dict({key: value})


def test_null_stays_possible_where_it_is_the_default() -> None:
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.WEIGHT_DECAY_BIAS", 1])
    assert cfg.SOLVER.WEIGHT_DECAY_BIAS == 1.0
    cfg.merge_from_list(["SOLVER.WEIGHT_DECAY_BIAS", "None"])
    assert cfg.SOLVER.WEIGHT_DECAY_BIAS is None


def test_nearest_keys_are_those_that_have_an_effect() -> None:
    with pytest.raises(ConfigError) as caught:
        get_cfg().merge_from_dict({"MODEL.RPN.NMS_TRESH": 1, "SOLVER.RESCALE_INTERVALS": True})
    assert "did you mean" not in str(caught.value)


def test_names_of_other_projects_lead_to_keys_that_are_read() -> None:
    assert len(foreign_names()) >= 48
    assert not set(foreign_names()) & set(read_keys())
    for name in foreign_names().values():
        first = name.split(",")[0].split(" ")[0]
        assert first in read_keys() or name[0].islower(), name


def test_dictionaries_and_configurations_are_merged_with_the_same_checks() -> None:
    cfg, values = get_cfg(), {"SOLVER": {"MAX_ITER": 5}, "SOLVER.BASE_LR": 1, "DATASETS": {"TRAIN": ("a",)}}
    cfg.merge_from_dict(values)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.DATASETS.TRAIN) == (5, 1.0, ["a"])
    assert values["SOLVER"] == {"MAX_ITER": 5}
    other = get_cfg()
    other.merge_from_other_cfg(cfg)
    assert other == cfg
    with pytest.raises(ConfigError, match="unknown key NEW"):
        other.merge_from_other_cfg(CfgNode({"NEW": 1}))


def test_new_keys_are_taken_where_the_node_allows_them() -> None:
    cfg = CfgNode({"MINE": {"A": 1}})
    cfg.MINE.set_new_allowed(True)
    cfg.merge_from_dict({"MINE.B": {"C": 2}})
    assert cfg.MINE.B.C == 2


def test_value_without_effect_gets_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    values = ["MODEL.FPN.OUT_CHANNELS", 128, "MODEL.RPN.NMS_THRESH", 0.123, "MODEL.MASK_ON", True, "VERSION", 2]
    with caplog.at_level(logging.WARNING):
        get_cfg().merge_from_list(values)
        get_cfg().merge_from_list(values)
    assert caplog.messages == [
        "MODEL.FPN.OUT_CHANNELS has no effect: it is called MODEL.SEM_SEG_HEAD.CONVS_DIM here; "
        "MODEL.RPN.NMS_THRESH has no effect"
    ]


def test_written_config_leaves_out_what_has_no_effect(tmp_path: Path) -> None:
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.RPN.NMS_THRESH", 0.1, "MODEL.DEVICE", "cpu"])
    text = cfg.dump()
    read = get_cfg()
    read.merge_from_file(_write(tmp_path / "config.yaml", text))
    assert read == cfg
    content = CfgNode.load_yaml_with_base(str(tmp_path / "config.yaml"))
    assert content["MODEL"]["RPN"] == {"NMS_THRESH": 0.1}
    assert not {"RETINANET", "ROI_HEADS"} & set(content["MODEL"])
    assert len(accepted_keys()) > 90


def test_epochs_and_iterations_the_last_source_counts(tmp_path: Path) -> None:
    cfg = get_cfg()
    _write(tmp_path / "base.yaml", "SOLVER: {MAX_ITER: 90000}")
    cfg.merge_from_file(_write(tmp_path / "leaf.yaml", "_BASE_: base.yaml\nSOLVER: {MAX_EPOCHS: 12}"))
    assert (cfg.SOLVER.MAX_EPOCHS, cfg.SOLVER.MAX_ITER) == (12, 90000)
    again = get_cfg()
    again.merge_from_file(_write(tmp_path / "config.yaml", cfg.dump()))
    assert again == cfg
    cfg.merge_from_list(["SOLVER.MAX_ITER", "100"])
    assert (cfg.SOLVER.MAX_EPOCHS, cfg.SOLVER.MAX_ITER) == (0, 100)
    with pytest.raises(ConfigError, match=r"command line: SOLVER\.MAX_EPOCHS and SOLVER\.MAX_ITER both"):
        cfg.merge_from_list(["SOLVER.MAX_ITER", "100", "SOLVER.MAX_EPOCHS", "3"])


def test_unknown_key_of_an_unknown_section_is_named_whole() -> None:
    with pytest.raises(ConfigError, match=r"unknown key NO\.SUCH"):
        get_cfg().merge_from_list(["NO.SUCH", 1])
