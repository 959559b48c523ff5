"""OneFormer trains, is evaluated in all tasks at once, and predicts the task that it is told."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former import Predictor
from mask2former.commands.cli import main
from mask2former.config import CfgNode, get_cfg
from mask2former.engine import train
from tests.data_pipeline import own_data_trees as trees

CONFIG = Path(__file__).parents[1] / "configs/shapes/oneformer/oneformer_R18_quickstart.yaml"

SMALL = {
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.ONE_FORMER.DEC_LAYERS": 2,
    "MODEL.ONE_FORMER.NUM_OBJECT_QUERIES": 20,
    "MODEL.ONE_FORMER.CLASS_DEC_LAYERS": 1,
    "MODEL.TEXT_ENCODER.NUM_LAYERS": 1,
    "INPUT.IMAGE_SIZE": 64,
    "INPUT.MIN_SIZE_TEST": 64,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.LOG_PERIOD": 1,
}

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("open_clip", "ftfy", "regex")), reason="needs the extra [text]"
)


@pytest.fixture(scope="module")
def trained(draw_shapes: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[CfgNode, Any]:
    cfg = get_cfg()
    cfg.merge_from_file(CONFIG)
    cfg.merge_from_dict(SMALL)
    cfg.OUTPUT_DIR = str(tmp_path_factory.mktemp("run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(draw_shapes(size=(64, 64))))
        return cfg, train(cfg)


def test_one_model_is_evaluated_in_three_tasks(trained: tuple[CfgNode, Any]) -> None:
    _, results = trained
    assert {"panoptic_seg", "segm", "sem_seg"} <= set(results)
    assert all(np.isfinite(results[task][metric]) for task, metric in (("panoptic_seg", "PQ"), ("sem_seg", "mIoU")))


def test_the_contrastive_loss_is_logged(trained: tuple[CfgNode, Any]) -> None:
    cfg, _ = trained
    lines = (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()
    assert any('"loss_contrastive"' in line for line in lines)


@pytest.mark.parametrize("task", ["panoptic", "all"])
def test_trained_weights_predict_the_task_of_the_config(trained: tuple[CfgNode, Any], task: str) -> None:
    cfg, _ = trained
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS, cfg.MODEL.TEST.TASK = str(Path(cfg.OUTPUT_DIR) / "model_final.pth"), task
    result = Predictor(cfg)(np.zeros((64, 64, 3), np.uint8))
    assert {"sem_seg", "panoptic_seg", "instances"} <= set(result)
    assert torch.isfinite(torch.as_tensor(result["sem_seg"])).all()


def test_predictor_tells_the_model_its_tasks_and_runs_the_backbone_once(trained: tuple[CfgNode, Any]) -> None:
    cfg, _ = trained
    weights = Path(cfg.OUTPUT_DIR) / "model_final.pth"
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    predictor = Predictor(cfg, weights, task=["instance", "semantic"])
    passes: list[Any] = []
    predictor.model.backbone.register_forward_hook(lambda *_: passes.append(1))
    told: list[str] = []
    task_ids = predictor.model.task_ids
    predictor.model.task_ids = lambda names: told.extend(names) or task_ids(names)
    both = predictor(image)
    assert (len(passes), sorted(told)) == (1, ["instance", "semantic"])
    assert {"instances", "sem_seg"} <= set(both)
    assert "panoptic_seg" not in both
    for task, field in (("instance", "instances"), ("semantic", "sem_seg")):
        alone = Predictor(cfg, weights, task=task)(image)[field]
        if field == "sem_seg":
            assert torch.equal(torch.as_tensor(alone), torch.as_tensor(both[field]))
        else:
            assert torch.equal(alone.scores, both[field].scores)


def test_command_predicts_tasks_of_one_model(trained: tuple[CfgNode, Any], tmp_path: Path) -> None:
    cfg, _ = trained
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "photo.png")
    options = ["--weights", str(Path(cfg.OUTPUT_DIR) / "model_final.pth"), "--output", str(tmp_path / "out")]
    assert main(["predict", str(tmp_path / "photo.png"), *options, "--task", "panoptic", "semantic"]) == 0
    assert len(list((tmp_path / "out").glob("*.jpg")) + list((tmp_path / "out").glob("*.png"))) == 2


def write_binary(root: Path) -> Path:
    for number in range(3):
        trees.write_image(root / "images" / f"{number}.jpg", seed=number)
        trees.write_mask(root / "masks" / f"{number}_mask.png", (trees.labels_of(number) == 1).astype(np.uint8))
    return root


@pytest.mark.parametrize(
    ("write", "results"),
    [
        (trees.write_coco_instances, {"segm", "bbox"}),
        (trees.write_png_tree, {"sem_seg"}),
        (write_binary, {"sem_seg"}),
        (trees.write_coco_panoptic, {"panoptic_seg", "segm", "bbox", "sem_seg"}),
    ],
    ids=["instances", "semantic", "binary", "panoptic"],
)
def test_own_data_of_any_kind_train_one_model(write: Callable[[Path], Path], results: set[str], tmp_path: Path) -> None:
    data, output = write(tmp_path / "data"), tmp_path / "out"
    options = [str(part) for pair in SMALL.items() for part in pair]
    arguments = ["--config-file", str(CONFIG), "--data", str(data), *options, "OUTPUT_DIR", str(output)]
    assert main(["train", *arguments]) == 0
    last = json.loads((output / "metrics.json").read_text().splitlines()[-1])
    assert {key.partition("/")[0] for key in last if "/" in key} >= results
    cfg = get_cfg()
    cfg.merge_from_file(output / "config.yaml")
    (expected,) = {"segm", "sem_seg"} & results if "panoptic_seg" not in results else {"all"}
    assert cfg.MODEL.TEST.TASK == {"segm": "instance", "sem_seg": "semantic", "all": "all"}[expected]
