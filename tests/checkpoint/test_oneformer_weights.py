"""OneFormer of the library transformers: same logits after conversion, and the same tensors after the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mask2former import get_cfg
from mask2former.checkpoint import load_state, load_weights
from mask2former.checkpoint.conversion import read_converted, to_transformers, write_ours, write_transformers
from mask2former.checkpoint.families import convert_to_ours
from mask2former.checkpoint.transformers_config import read_transformers_folder
from mask2former.commands.cli import main
from mask2former.commands.convert import run_model
from mask2former.modeling import build_model
from mask2former.structures.tasks import TASKS
from tests.integrations.tiny_transformers import NUM_CLASSES, tiny_oneformer, transformers
from tests.parity import REFERENCE_DIR, build_fixture_model, fill_model, fixture_config, load_fixture

NAMES = json.loads((REFERENCE_DIR / "oneformer" / "transformers_names.json").read_text())
MODELS = [name for name in NAMES if name != "about"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("generation", [0, 1], ids=["files", "memory"])
def test_every_name_of_transformers_is_known(model: str, generation: int) -> None:
    ours = {name: theirs for name, theirs in NAMES[model].items() if theirs[0]}
    tensors = {name: torch.arange(3.0) for name in ours}
    written = to_transformers(tensors)
    assert written.keys() == {name for theirs in ours.values() for name in theirs[0]}
    found = {name: torch.arange(3.0)[:1] for theirs in ours.values() for name in theirs[generation]}
    converted = convert_to_ours(found, source="here")
    assert converted.family is not None
    assert converted.family.name == "transformers OneFormer"
    assert converted.tensors.keys() == ours.keys()
    assert not converted.unknown


def _our_model(folder: Path, *, accelerated: bool = True) -> Any:
    cfg = get_cfg()
    for key, value in read_transformers_folder(folder).items():
        cfg.merge_from_list([key, value])
    cfg.MODEL.DEVICE = "cpu"
    model: Any = build_model(cfg, accelerated=accelerated).eval()
    report = load_weights(model, folder)
    assert report.is_complete
    return model, cfg


@pytest.mark.parametrize("accelerated", [False, True], ids=["plain", "fast"])
@pytest.mark.parametrize("options", [{}, {"pre_norm": True}, {"use_task_norm": False}, {"query_dec_layers": 1}])
def test_logits_equal_those_of_transformers(tmp_path: Path, options: dict[str, Any], accelerated: bool) -> None:
    theirs = tiny_oneformer(**options)
    theirs.save_pretrained(tmp_path)
    ours, _ = _our_model(tmp_path, accelerated=accelerated)
    image = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    for task in TASKS:
        expected, actual = run_model(theirs, image, task=task), run_model(ours, image, task=task)
        if expected.count_flipped(actual):  # a logit next to zero falls on either side by rounding alone
            actual = run_model(ours, image, task=task, attended=expected.attended)
        assert expected.difference(actual) <= 1e-5


def test_weights_are_the_same_after_the_way_back(tmp_path: Path) -> None:
    theirs = tiny_oneformer(is_training=True, dropout=0.0)  # with the text branch, theirs drops in evaluation, too
    theirs.save_pretrained(tmp_path / "theirs")
    ours, cfg = _our_model(tmp_path / "theirs")
    assert ours.text_encoder is not None
    names = [f"class {index}" for index in range(NUM_CLASSES)]
    write_transformers(ours.state_dict(), tmp_path / "back", cfg=cfg, class_names=names, thing_ids=[0, 2])
    stored, back = (load_state(tmp_path / folder)["model"] for folder in ("theirs", "back"))
    expected = {name: tensor for name, tensor in stored.items() if "swin.layernorm." not in name}
    assert back.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(back[name], tensor.to(back[name].dtype)), name  # theirs keeps the temperature in float64
    again = transformers.OneFormerForUniversalSegmentation.from_pretrained(tmp_path / "back").eval()
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    assert run_model(theirs_without_texts(theirs), image).difference(run_model(again, image)) <= 1e-6
    processor = transformers.OneFormerImageProcessor.from_pretrained(tmp_path / "back")
    assert processor.metadata["thing_ids"] == [0, 2]
    assert processor.metadata["class_names"] == names
    assert processor.num_text == 5


def theirs_without_texts(model: Any) -> Any:
    """Return the model as for inference: in training it asks every caller for texts."""
    model.model.is_training = False
    return model


def test_dinat_of_transformers_runs(tmp_path: Path) -> None:
    fixture = load_fixture("oneformer/tiny_oneformer_dinat_seed1")
    cfg = fixture_config(fixture)
    cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = cfg.MODEL.ONE_FORMER.NHEADS  # theirs are the same
    model: Any = build_model(cfg).eval()
    fill_model(model, fixture.seed)
    write_transformers(model.state_dict(), tmp_path, cfg=cfg)
    ours, loaded = _our_model(tmp_path)
    assert loaded.MODEL.DiNAT == cfg.MODEL.DiNAT
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    assert run_model(model, image).difference(run_model(ours, image)) == 0


@pytest.mark.parametrize("is_train", [False, True])
def test_published_file_loads_with_and_without_text_branch(tmp_path: Path, is_train: bool) -> None:
    fixture = load_fixture("oneformer/tiny_oneformer_swin_seed1")
    tensors = build_fixture_model(fixture).state_dict()
    write_ours(tensors, tmp_path / "whole.pth")
    cfg = fixture_config(fixture)
    cfg.MODEL.IS_TRAIN = is_train
    model = build_model(cfg)
    assert load_weights(model, tmp_path / "whole.pth").is_complete
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name


def test_command_converts_and_verifies_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_oneformer().save_pretrained(tmp_path / "theirs")
    file = tmp_path / "ours.safetensors"
    assert main(["convert", str(tmp_path / "theirs"), str(file), "--verify"]) == 0
    assert main(["convert", str(file), str(tmp_path / "back"), "--verify"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("in float64 0 of") == 2
    expected, actual = (read_converted(tmp_path / name).tensors for name in ("theirs", "back"))
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())
