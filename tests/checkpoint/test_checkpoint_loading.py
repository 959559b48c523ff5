"""Loading weights says what matched, what was missing, unexpected or of another shape."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from mask2former.checkpoint import load_state_dict, load_weights
from mask2former.errors import CheckpointError
from mask2former.files.atomic import save_atomic


def _model(num_classes: int = 3) -> nn.Sequential:
    model = nn.Sequential()
    model.add_module("body", nn.Linear(4, 5))
    model.add_module("head", nn.Linear(5, num_classes))
    return model


def test_load_weights_loads_everything_of_the_same_model(tmp_path: Path) -> None:
    source, target = _model(), _model()
    save_atomic({"model": source.state_dict()}, tmp_path / "m.pth")
    report = load_weights(target, tmp_path / "m.pth")
    assert report.is_complete
    assert not report.unexpected
    assert set(report.matched) == set(source.state_dict())
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name])


def test_load_weights_skips_and_lists_class_head_of_another_size(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, target = _model(num_classes=7), _model()
    initial_head = target.head.weight.clone()
    save_atomic({"model": source.state_dict()}, tmp_path / "m.pth")
    with caplog.at_level(logging.INFO):
        report = load_weights(target, tmp_path / "m.pth")
    assert report.mismatched == {"head.weight": ((7, 5), (3, 5)), "head.bias": ((7,), (3,))}
    assert report.matched == ("body.weight", "body.bias")
    assert not report.missing
    assert torch.equal(target.head.weight, initial_head)
    assert torch.equal(target.body.weight, source.body.weight)
    assert "head.weight (7, 5) here (3, 5)" in caplog.text


def test_load_weights_reports_missing_and_unexpected(tmp_path: Path) -> None:
    target = _model()
    weights = {"body.weight": torch.ones(5, 4), "other": torch.ones(1)}
    report = load_state_dict(target, weights, source="memory")
    assert set(report.missing) == {"body.bias", "head.weight", "head.bias"}
    assert report.unexpected == ("other",)
    assert "1 of 4 tensors" in report.format()


def test_load_weights_refuses_checkpoint_for_another_model(tmp_path: Path) -> None:
    target = _model()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    save_atomic({"model": {"encoder.weight": torch.ones(2), "body.weight": torch.ones(9, 9)}}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"m\.pth: a checkpoint for another model.*encoder\.weight"):
        load_weights(target, tmp_path / "m.pth")
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


@pytest.mark.parametrize("content", [{}, {"model": {}}])
def test_load_weights_refuses_empty_checkpoint(tmp_path: Path, content: dict[str, object]) -> None:
    save_atomic(content, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="another model"):
        load_weights(_model(), tmp_path / "m.pth")


@pytest.mark.parametrize("key", ["model", "state_dict", None])
def test_load_weights_finds_weights_and_drops_wrapper_prefix(tmp_path: Path, key: str | None) -> None:
    weights = {f"module.{name}": tensor for name, tensor in _model().state_dict().items()}
    save_atomic({key: weights} if key else weights, tmp_path / "m.pth")
    assert load_weights(_model(), tmp_path / "m.pth").is_complete


def test_load_weights_places_backbone_file_by_suffix(tmp_path: Path) -> None:
    target = nn.ModuleDict({"backbone": _model(), "neck": nn.Linear(4, 5)})
    arrays = {name: tensor.numpy() for name, tensor in _model().state_dict().items()}
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "matching_heuristics": True}))
    report = load_weights(target, path)
    assert {name for name in report.matched if name.startswith("backbone.")} == set(report.matched)
    assert len(report.matched) == 4
    assert torch.equal(target["backbone"].body.weight, torch.from_numpy(arrays["body.weight"]))
