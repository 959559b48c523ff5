"""The command that converts weights, from its command line to its files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mask2former import build_model, get_cfg
from mask2former.checkpoint import load_state, load_weights
from mask2former.commands.cli import main
from mask2former.files.atomic import save_atomic

pytest.importorskip("transformers")

OPTIONS = """
    MODEL.DEVICE cpu MODEL.SWIN.EMBED_DIM 12 MODEL.SWIN.DEPTHS [1,1,2,1] MODEL.SWIN.NUM_HEADS [1,2,2,4]
    MODEL.SWIN.WINDOW_SIZE 3 MODEL.SEM_SEG_HEAD.CONVS_DIM 32 MODEL.SEM_SEG_HEAD.MASK_DIM 32
    MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS 1 MODEL.MASK_FORMER.HIDDEN_DIM 32 MODEL.MASK_FORMER.DIM_FEEDFORWARD 32
    MODEL.MASK_FORMER.NUM_OBJECT_QUERIES 6 MODEL.MASK_FORMER.DEC_LAYERS 3
""".split()
CONFIGS = Path(__file__).parents[2] / "configs"
SWIN = CONFIGS / "coco" / "panoptic-segmentation" / "swin" / "maskformer2_swin_tiny_bs16_50ep.yaml"


def _model() -> Any:
    cfg = get_cfg()
    cfg.merge_from_file(SWIN)
    cfg.merge_from_list(OPTIONS)
    torch.manual_seed(0)
    return build_model(cfg).eval()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.pth"
    save_atomic({"model": _model().state_dict()}, path)
    return path


def _convert(*arguments: str | Path) -> int:
    return main(["convert", *map(str, arguments)])


def test_convert_goes_to_transformers_and_back(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _convert(weights, tmp_path / "theirs", "--config-file", SWIN, "--verify", "--opts", *OPTIONS) == 0
    printed = capsys.readouterr().out
    assert "class logits: largest difference" in printed
    assert "mask logits: largest difference" in printed
    assert "in float64 0 of 360 attention-mask bits differ" in printed
    assert re.search(r"in float32 \d+ of 360, largest difference ", printed)
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert config["id2label"]["0"] == "person"
    assert len(config["id2label"]) == 133
    assert json.loads((tmp_path / "theirs" / "preprocessor_config.json").read_text())["image_std"][0] < 1

    assert _convert(tmp_path / "theirs", tmp_path / "back.pkl", "--verify") == 0
    cfg = get_cfg()
    cfg.merge_from_file(tmp_path / "back.yaml")
    cfg.MODEL.DEVICE = "cpu"
    again = build_model(cfg)
    assert load_weights(again, tmp_path / "back.pkl").is_complete
    for name, tensor in load_state(weights)["model"].items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_convert_to_the_same_layout_verifies(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config-file", SWIN, "--verify", "--opts", *OPTIONS]
    assert _convert(weights, tmp_path / "model.pkl", *arguments) == 0
    assert "class logits: largest difference 0.0e+00" in capsys.readouterr().out


def test_convert_of_a_backbone_verifies_its_features(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_state(weights)["model"]
    state = {name.removeprefix("backbone."): t for name, t in state.items()}
    backbone = {name: t for name, t in state.items() if name.startswith(("layers.", "patch_embed."))}
    torch.save({"model": backbone, "head.weight": torch.ones(2, 2)}, tmp_path / "swin.pth")
    arguments = ["--config-file", SWIN, "--verify", "--opts", *OPTIONS]
    assert _convert(tmp_path / "swin.pth", tmp_path / "swin.pkl", *arguments) == 0
    assert "res5: largest difference 0.0e+00" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.pth", "out.pkl"], "no such checkpoint file"),
        (["WEIGHTS", "theirs"], "--config-file: needed"),
        (["WEIGHTS", "out.pkl", "--verify"], "--config-file: needed"),
        (["WEIGHTS", "out.pkl", "--verify", "--swap-channels"], "--verify: with --swap-channels"),
        (["FOREIGN", "out.pkl"], "no known family"),
        (["WEIGHTS", "model.pth"], "OUTPUT is SOURCE"),
    ],
)
def test_convert_explains_what_is_wrong(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    torch.save({"encoder.weight": torch.ones(1)}, tmp_path / "foreign.pth")
    places = {"WEIGHTS": weights, "FOREIGN": tmp_path / "foreign.pth"}
    paths = [places.get(word, word if word.startswith("-") else tmp_path / word) for word in arguments]
    assert _convert(*paths) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_convert_verification_notices_a_difference(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mask2former.commands import convert as convert_command

    def write_changed(tensors: dict[str, torch.Tensor], path: Path, **_: object) -> None:
        name = "sem_seg_head.predictor.class_embed.bias"
        save_atomic({"model": {**tensors, name: tensors[name] + 1}}, path)

    monkeypatch.setattr(convert_command, "write_ours", write_changed)
    arguments = ["--config-file", SWIN, "--verify", "--opts", *OPTIONS]
    assert _convert(weights, tmp_path / "changed.pth", *arguments) == 1
    assert "expected at most 1e-04" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        "maskformer2_R50_bs16_50ep.yaml",
        "swin/maskformer2_swin_tiny_bs16_50ep.yaml",
        "swin/maskformer2_swin_large_IN21k_384_bs16_100ep.yaml",
    ],
)
def test_full_models_keep_their_logits_through_every_layout(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = CONFIGS / "coco" / "panoptic-segmentation" / config
    cfg = get_cfg()
    cfg.merge_from_file(file)
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    save_atomic({"model": build_model(cfg).state_dict()}, tmp_path / "ours.pth")
    previous = tmp_path / "ours.pth"
    for name in ("published.pkl", "theirs", "back.pth"):
        assert _convert(previous, tmp_path / name, "--config-file", file, "--verify") == 0
        previous = tmp_path / name
    first, last = (load_state(tmp_path / name)["model"] for name in ("ours.pth", "back.pth"))
    assert all(torch.equal(first[name], tensor) for name, tensor in last.items())
    assert {name for name in first if name not in last and "relative_position_index" not in name} == set()
    capsys.readouterr()
