"""A project of its own, reached by --import alone: a backbone with config keys and a data set, in every command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mask2former
from mask2former import Predictor
from mask2former.commands.cli import main
from mask2former.config import keys
from mask2former.data import DatasetCatalog, MetadataCatalog
from mask2former.data.catalog import register_run_metadata
from mask2former.errors import ConfigError, DatasetError
from mask2former.inference import model_source
from mask2former.modeling import BACKBONE_REGISTRY

MODULE = "my_project_of_test"
PROJECT = """
from pathlib import Path
import os
import torch
from torch import nn
from mask2former.config import register_keys
from mask2former.data import DatasetCatalog, MetadataCatalog, register_coco_instances
from mask2former.inference import model_source
from mask2former.modeling import BACKBONE_REGISTRY
from mask2former.modeling.backbone import Backbone
from mask2former.structures import ShapeSpec

register_keys({"MODEL": {"MINE": {"WIDTH": 8}}})
ROOT = Path(os.environ["DETECTRON2_DATASETS"]) / "shapes"
for part in ("train", "val"):
    colors = {"thing_colors": [[250, 0, 9]] * 7}
    register_coco_instances(f"mine_{part}", colors, ROOT / f"annotations/instances_{part}.json", ROOT / part)


@BACKBONE_REGISTRY.register()
class MyBackbone(Backbone):
    def __init__(self, cfg, input_shape):
        width = cfg.MODEL.MINE.WIDTH
        strides = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
        shapes = {name: ShapeSpec(channels=width, stride=stride) for name, stride in strides.items()}
        super().__init__(shapes, out_features=list(strides))
        self.steps = nn.ModuleDict({n: nn.Conv2d(3, width, 3, stride=s, padding=1) for n, s in strides.items()})

    def forward(self, images):
        return {name: step(images) for name, step in self.steps.items()}
"""
CONFIG = "shapes/instance-segmentation/maskformer2_R18_quickstart.yaml"
TINY = """
    MODEL.DEVICE cpu MODEL.WEIGHTS '' MODEL.BACKBONE.NAME MyBackbone MODEL.MINE.WIDTH 12 MODEL.SEM_SEG_HEAD.CONVS_DIM 32
    MODEL.SEM_SEG_HEAD.MASK_DIM 32 MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS 1 MODEL.MASK_FORMER.HIDDEN_DIM 32
    MODEL.MASK_FORMER.NHEADS 4 MODEL.MASK_FORMER.DIM_FEEDFORWARD 32 MODEL.MASK_FORMER.DEC_LAYERS 2
    MODEL.MASK_FORMER.NUM_OBJECT_QUERIES 8 MODEL.MASK_FORMER.TRAIN_NUM_POINTS 64 SOLVER.IMS_PER_BATCH 2
    SOLVER.MAX_ITER 1 DATALOADER.NUM_WORKERS 0 INPUT.IMAGE_SIZE 32 INPUT.MIN_SIZE_TEST 32 SOLVER.AMP.ENABLED False
    DATASETS.TRAIN ('mine_train',) DATASETS.TEST ('mine_val',)
""".replace("''", '""').split()


def forget() -> None:
    """As in a new process: the module is not imported, and nobody has registered its data sets."""
    sys.modules.pop(MODULE, None)
    BACKBONE_REGISTRY._obj_map.pop("MyBackbone", None)
    keys._REGISTERED.pop("MODEL.MINE.WIDTH", None)
    for name in ("mine_train", "mine_val"):
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog:
                catalog.remove(name)


@pytest.fixture(scope="module")
def project(draw_shapes: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module, data, a photo, and a run, which was trained with --import."""
    folder = tmp_path_factory.mktemp("project")
    (folder / f"{MODULE}.py").write_text(PROJECT)
    Image.fromarray(np.full((30, 40, 3), 90, np.uint8)).save(folder / "photo.jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(draw_shapes(num_train=2, num_val=1)))
        patch.syspath_prepend(str(folder))
        arguments = ["--config-file", CONFIG, "--import", MODULE, "--output", str(folder / "run")]
        assert main(["train", *arguments, *TINY]) == 0
        yield folder
    forget()


@pytest.fixture(autouse=True)
def _in_a_new_process(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget()
    monkeypatch.chdir(project)


def test_run_keeps_what_it_learnt(project: Path) -> None:
    cfg_text = (project / "run/config.yaml").read_text()
    assert f"IMPORTS:\n- {MODULE}" in cfg_text
    known = json.loads((project / "run/metadata.json").read_text())
    assert len(known["mine_val"]["thing_classes"]) == 7
    assert known["mine_train"]["thing_colors"][0] == [250, 0, 9]


@pytest.mark.parametrize(
    ("arguments", "made"),
    [
        (["predict", "--weights", "run", "photo.jpg"], "predictions/photo_instance.png"),
        (["predict", "--weights", "run/model_final.pth", "photo.jpg", "--output", "one.jpg"], "one.jpg"),
        (
            ["predict", "--weights", "run", "--input", "photo.jpg", "--output", "new/here"],
            "new/here/photo_instance.png",
        ),
        (["evaluate", "--weights", "run", "--output", "again"], "again/inference/mine_val"),
        (["analyze", "--weights", "run", "--tasks", "parameter", "flop", "--output", "found.txt"], "found.txt"),
        (["benchmark", "--weights", "run", "--task", "eval", "--num-iters", "1", "--warmup", "0"], ""),
        (["benchmark", "--weights", "run", "--task", "train", "--num-iters", "1", "--warmup", "0"], ""),
        (["visualize", "--weights", "run", "--source", "annotation", "--output", "drawn"], "drawn"),
        (["visualize", "--weights", "run", "--source", "dataloader", "-n", "1", "--output", "seen"], "seen"),
        (["convert", "run", "out.safetensors", "--verify"], "out.safetensors"),
        (["convert", "run/model_final.pth", "--output", "out.pkl"], "out.pkl"),
        (["train", "--resume", "--output", "run", "SOLVER.MAX_ITER", "2"], "run/model_final.pth"),
        (["train", "--eval-only", "--weights", "run", "OUTPUT_DIR", "third"], "third/inference"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else "",
)
def test_run_folder_is_enough_for_every_command(arguments: list[str], made: str, project: Path) -> None:
    assert main(arguments) == 0
    assert not made or (project / made).exists()
    assert Image.open(project / made).size[0] >= 40 if made.endswith((".png", ".jpg")) else True


def test_import_stands_for_a_config_that_names_no_module(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["analyze", "--config-file", CONFIG, "--tasks", "parameter", "--size", "32", "32", *TINY]
    assert main(arguments) == 1
    assert "unknown key MODEL.MINE" in capsys.readouterr().err
    assert main([*arguments, "--import", MODULE]) == 0
    assert main([*arguments, "--import", "no_such_module_here"]) == 1
    assert "modules are looked for on PYTHONPATH" in capsys.readouterr().err


def test_module_that_fails_is_one_line(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "failing_project.py").write_text("value = 1 / 0\n")
    assert main(["train", "--config-file", CONFIG, "--import", "failing_project"]) == 1
    error = capsys.readouterr().err
    assert "--import failing_project: ZeroDivisionError" in error
    assert "failing_project.py, line 1" in error


def test_python_takes_a_run_folder_too(project: Path) -> None:
    run = mask2former.pipeline("instance", weights=project / "run", score_threshold=0.0)
    result = run(project / "photo.jpg")
    assert set(result["labels"]) <= set(MetadataCatalog.get("mine_val").thing_classes)
    assert Predictor(project / "run/config.yaml", project / "run").metadata.thing_colors[0] == [250, 0, 9]


def test_weights_without_their_module_name_it(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(project)])
    with pytest.raises(ConfigError, match=f"IMPORTS {MODULE}: No module named"):
        mask2former.pipeline("instance", weights=project / "run")


def test_config_without_weights_predicts_only_when_told(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["predict", "--config-file", CONFIG, "--import", MODULE, "photo.jpg", "--output", "random.png", *TINY]
    assert main(arguments) == 1
    assert "error: --weights: needed" in capsys.readouterr().err
    assert main([*arguments, "--random-weights"]) == 0
    assert (project / "random.png").exists()


def test_classes_of_a_run_are_known_where_its_data_set_is_not(project: Path) -> None:
    register_run_metadata(project / "run")
    assert len(MetadataCatalog.get("mine_val").thing_classes) == 7
    assert "mine_val" not in DatasetCatalog


def test_downloaded_config_imports_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloaded = str(project / "run/model_final.pth")
    monkeypatch.setattr(model_source, "locate_weights", lambda weights: downloaded)
    with pytest.raises(ConfigError, match=f"was downloaded and names modules.*--import {MODULE}"):
        mask2former.pipeline("instance", weights="https://somewhere/model_final.pth")
    assert MODULE not in sys.modules


def test_damaged_metadata_of_a_run_is_named(tmp_path: Path) -> None:
    for content, message in (("[]", "metadata.json"), ('{"mine_val": 3}', "expected an object for 'mine_val'")):
        (tmp_path / "metadata.json").write_text(content)
        with pytest.raises(DatasetError, match=message):
            register_run_metadata(tmp_path)
