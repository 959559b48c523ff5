"""Weights that hold their config: predicted with, converted and read alone, in a folder with nothing beside them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mask2former
from mask2former.checkpoint import load_state
from mask2former.checkpoint.description import Description, describe, read_description
from mask2former.commands.cli import main, train_main
from mask2former.data.catalog import DatasetCatalog, MetadataCatalog
from mask2former.errors import InputError
from mask2former.files.atomic import save_atomic
from mask2former.inference.model_source import find_config
from tests.commands.test_train_own_data import arguments
from tests.data_pipeline import own_data_trees as trees


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step on data of its own, with the classes box, disc and leaf."""
    folder = tmp_path_factory.mktemp("run")
    data = str(trees.write_labelme(folder / "data"))
    assert train_main(arguments(folder / "out", "instance", "--data", data, options=("SOLVER.MAX_ITER", 1))) == 0
    return folder / "out"


def _forget_data_sets(run: Path) -> None:
    cfg = find_config(str(run))
    for name in {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST}:
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog:
                catalog.remove(name)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_alone_predict_without_config(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    checkpoint = next(path for path in run.glob("model_*.pth"))
    if suffix == ".pth":
        shutil.copy(checkpoint, alone / "mine.pth")
    else:
        assert main(["convert", str(run), str(alone / "mine.safetensors")]) == 0
    image = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    Image.fromarray(image).save(alone / "photo.png")
    expected = mask2former.pipeline("instance", weights=run, device="cpu", score_threshold=0.0)(image)
    _forget_data_sets(run)
    monkeypatch.chdir(alone)
    found = mask2former.pipeline("instance", weights=f"mine{suffix}", device="cpu", score_threshold=0.0)(image)
    assert found["labels"] == expected["labels"]
    assert set(found["labels"]) <= {"box", "disc", "leaf"}
    np.testing.assert_array_equal(found["masks"], expected["masks"])
    predictor = mask2former.Predictor(weights=f"mine{suffix}", device="cpu")
    assert predictor.metadata.thing_classes == [
        "box",
        "disc",
        "leaf",
    ]
    assert main(["predict", "photo.png", "--weights", f"mine{suffix}", "--device", "cpu", "--output", "out.jpg"]) == 0
    assert sorted(path.name for path in alone.iterdir()) == [f"mine{suffix}", "out.jpg", "photo.png"]


def test_convert_keeps_the_device_and_turns_the_channels_of_its_config(run: Path, tmp_path: Path) -> None:
    assert main(["convert", str(run), str(tmp_path / "a.pth"), "--swap-channels"]) == 0
    before, after = find_config(str(run)), find_config(str(tmp_path / "a.pth"))
    assert (before.INPUT.FORMAT, after.INPUT.FORMAT) == ("RGB", "BGR")
    assert after.MODEL.PIXEL_MEAN == before.MODEL.PIXEL_MEAN[::-1]
    assert after.MODEL.DEVICE == before.MODEL.DEVICE


def test_config_beside_weights_counts_before_the_one_inside(tmp_path: Path) -> None:
    save_atomic({"model": {}, **describe("SEED: 1")}, tmp_path / "model.pth")
    assert find_config(str(tmp_path / "model.pth")).SEED == 1
    (tmp_path / "config.yaml").write_text("SEED: 2")
    assert find_config(str(tmp_path / "model.pth")).SEED == 2


@pytest.mark.parametrize("config", [7, torch.zeros(2), "", None, ["SEED: 1"]])
def test_other_entries_called_config_say_nothing(tmp_path: Path, config: object) -> None:
    save_atomic({"model": {"a": torch.ones(1)}, "config": config}, tmp_path / "model.pth")
    assert read_description(tmp_path / "model.pth") is None
    with pytest.raises(InputError, match="none was found in it, nor as"):
        find_config(str(tmp_path / "model.pth"))


@pytest.mark.parametrize(
    ("config", "metadata", "message"),
    [
        ("SEED: [", "", "its config: not a readable config file"),
        ("- a", "", "its config: expected KEY: VALUE pairs, found list"),
        ("_BASE_: /etc/passwd", "", "its config: _BASE_: a config that is not a file inherits from none"),
        ("SED: 1", "", r"its config: unknown key SED; did you mean SEED\?"),
        ("IMPORTS: [os_like]", "", "names modules; if you trust them, import them first: --import os_like"),
        ("SEED: 1", "{", "its metadata: not a valid JSON file"),
        ("SEED: 1", "[1]", "its metadata: expected an object, found list"),
        ("SEED: 1", '{"a": 3}', "its metadata: expected an object for 'a', found int"),
        ("x" * (1 << 20), "", "a config of 1,048,576 letters"),
    ],
)
def test_wrong_description_is_one_line(tmp_path: Path, config: str, metadata: str, message: str) -> None:
    save_atomic({"model": {}, **describe(config, metadata)}, tmp_path / "model.pth")
    with pytest.raises(InputError, match=message) as raised:
        find_config(str(tmp_path / "model.pth"))
    assert "\n" not in str(raised.value)


def test_damaged_weights_are_called_damaged_before_a_config_is_asked_for(tmp_path: Path) -> None:
    for suffix in (".pth", ".safetensors"):
        (tmp_path / f"model{suffix}").write_bytes(b"PK\x03\x04 and no more")
        with pytest.raises(InputError, match="truncated or corrupt"):
            find_config(str(tmp_path / f"model{suffix}"))


def test_description_is_read_without_the_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    save_atomic({"model": {"a": torch.ones(1000)}, **describe("SEED: 1", "{}")}, path)
    content = path.read_bytes()
    path.write_bytes(content.replace(torch.ones(1000).numpy().tobytes(), bytes(4000)))  # against its checksum
    assert read_description(path) == Description("SEED: 1", "{}")
    with pytest.raises(InputError, match="checksum"):
        load_state(path)
