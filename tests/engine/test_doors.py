"""Hooks and metric writers from outside, by name and as arguments; evaluators before the first step; numerics."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mask2former.checkpoint import load_state
from mask2former.config import CfgNode, get_cfg
from mask2former.data import DatasetCatalog, MetadataCatalog, register_builtin_datasets
from mask2former.engine import HOOK_REGISTRY, WRITER_REGISTRY, Hook, Trainer, train
from mask2former.engine.metrics import JsonWriter, MetricLog, TensorBoardWriter
from mask2former.errors import CheckpointError, ConfigError, InputError
from mask2former.evaluation import EVALUATOR_REGISTRY, DatasetEvaluator
from mask2former.modeling.execution import set_float32_precision
from tests.commands.test_cli_train import TINY
from tests.engine.stub_training import run_stub, stub_config


@pytest.fixture(autouse=True)
def _own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (HOOK_REGISTRY, WRITER_REGISTRY, EVALUATOR_REGISTRY):
        monkeypatch.setattr(registry, "_obj_map", dict(registry._obj_map))


class StepCount(Hook):
    """Counts steps over restarts; says what it sees in ``seen``."""

    def __init__(self, cfg: Any = None) -> None:
        self.steps, self.seen = 0, []

    def after_step(self, trainer: Trainer) -> None:
        self.steps += 1
        trainer.log.write(trainer.iteration, {"steps": self.steps})

    def after_evaluation(self, trainer: Trainer, results: Mapping[str, Any]) -> None:
        self.seen.append((trainer.iteration, dict(results)))

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


class MemoryWriter:
    """Keeps what is written."""

    def __init__(self, cfg: Any = None) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.images: list[tuple[int, list[str]]] = []
        self.is_closed = False

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self.lines.append((iteration, dict(metrics)))

    def write_images(self, iteration: int, images: Mapping[str, np.ndarray]) -> None:
        self.images.append((iteration, list(images)))

    def close(self) -> None:
        self.is_closed = True


def test_hooks_of_one_class_resume_each_with_its_state(tmp_path: Path) -> None:
    first, second = StepCount(), StepCount()
    second.steps = 100
    run_stub(stub_config(tmp_path, "SOLVER.MAX_ITER", 8), hooks=[first, second])
    saved = load_state(tmp_path / "model_0000003.pth")["hooks"]
    assert (saved["StepCount"], saved["StepCount_2"]) == ({"steps": 4}, {"steps": 104})  # the step itself included
    again = [StepCount(), StepCount()]
    run_stub(stub_config(tmp_path), resume=True, hooks=again)
    assert [hook.steps for hook in again] == [12, 112]


def test_hook_and_writer_are_found_by_name(tmp_path: Path) -> None:
    made: list[MemoryWriter] = []
    HOOK_REGISTRY.register(StepCount)
    WRITER_REGISTRY.register(lambda cfg: made.append(MemoryWriter()) or made[-1], name="memory")
    argument = MemoryWriter()
    cfg = stub_config(tmp_path, "SOLVER.HOOKS", ["StepCount"], "SOLVER.WRITERS", ["memory"])
    run_stub(cfg, writers=[argument])
    assert made[0].lines == argument.lines
    assert made[0].is_closed
    assert argument.is_closed
    assert {"loss_ce", "total_loss", "lr"} <= next(m for i, m in argument.lines if "lr" in m).keys()
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["steps"] for line in lines] == list(range(1, 13))


@pytest.mark.parametrize("key", ["SOLVER.HOOKS", "SOLVER.WRITERS"])
def test_unknown_name_is_refused_before_the_first_step(key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{key}: expected one of .*found 'nothing'"):
        run_stub(stub_config(tmp_path, key, ["nothing"]))
    assert not list(tmp_path.glob("*.pth"))


def test_hook_hears_of_every_evaluation_after_its_steps(tmp_path: Path) -> None:
    hook = StepCount()
    cfg = stub_config(tmp_path, "TEST.EVAL_PERIOD", 5, "DATASETS.TEST", ("stub",))
    run_stub(cfg, evaluate=lambda cfg, model: {"task": {"metric": float(hook.steps)}}, hooks=[hook])
    assert hook.seen == [(i, {"task": {"metric": i + 1.0}}) for i in (4, 9, 11)]


def test_state_that_no_checkpoint_can_be_read_with_is_refused(tmp_path: Path) -> None:
    class Wrong(StepCount):
        def state_dict(self) -> dict[str, Any]:
            return {"best": [1.0, {"at": np.float64(2)}]}

    with pytest.raises(ConfigError, match=r"the hook Wrong\['best'\]\[1\]\['at'\]: expected .*found float64"):
        run_stub(stub_config(tmp_path), hooks=[Wrong()])
    with pytest.raises(CheckpointError):
        load_state(tmp_path / "model_0000003.pth")


def test_images_go_to_the_writers_that_take_them(tmp_path: Path) -> None:
    memory, tensorboard = MemoryWriter(), TensorBoardWriter(tmp_path)
    log = MetricLog([memory, JsonWriter(tmp_path / "metrics.json"), tensorboard])
    log.write_images(3, {"seen": np.zeros((4, 5, 3), np.uint8)})
    log.close()
    assert memory.images == [(3, ["seen"])]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.height, e.width) for e in events.Images("seen")] == [(3, 4, 5)]


QUICKSTART = Path(__file__).parents[2] / "configs/shapes/panoptic-segmentation/maskformer2_R18_quickstart.yaml"


@pytest.fixture
def tiny_cfg(
    draw_shapes: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., CfgNode]:
    """The config of a run of one step on two images."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(draw_shapes()))

    def build(*options: Any) -> CfgNode:
        cfg = get_cfg()
        cfg.merge_from_file(QUICKSTART)
        cfg.merge_from_list([*TINY, "OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", 1, *options])
        return cfg

    return build


class ImageCount(DatasetEvaluator):
    """Counts images."""

    def __init__(self, cfg: CfgNode, dataset_name: str, output_dir: Path) -> None:
        self.folder = output_dir
        self.reset()

    def reset(self) -> None:
        self.count = 0

    def process(self, inputs: Any, outputs: Any) -> None:
        self.count += len(inputs)

    def evaluate(self) -> dict[str, dict[str, float]]:
        return {"images": {self.folder.parent.name: float(self.count)}}


@pytest.mark.parametrize("by_name", [True, False])
def test_evaluator_from_outside_sees_every_image(by_name: bool, tiny_cfg: Callable[..., CfgNode]) -> None:
    EVALUATOR_REGISTRY.register(ImageCount)
    cfg = tiny_cfg("TEST.EVALUATORS", ["ImageCount"] if by_name else [], "TEST.EVAL_PERIOD", 1, "SOLVER.MAX_ITER", 2)
    results = train(cfg, evaluators=() if by_name else (ImageCount,))
    assert results["images"] == {"inference": 2.0}  # of the last of two evaluations
    assert "panoptic_seg" in results


def test_evaluators_of_augmentation_are_built_before_the_first_step(
    tiny_cfg: Callable[..., CfgNode], tmp_path: Path
) -> None:
    def refuse(cfg: CfgNode, dataset_name: str, output_dir: Path) -> DatasetEvaluator:
        if "inference_TTA" in output_dir.parts:
            raise ConfigError("no copies here")
        return ImageCount(cfg, dataset_name, output_dir)

    with pytest.raises(ConfigError, match="no copies here"):
        train(tiny_cfg("TEST.AUG.ENABLED", True), evaluators=(refuse,))
    assert not (tmp_path / "metrics.json").exists()
    assert not list(tmp_path.glob("*.pth"))


@pytest.mark.parametrize("content", ["[1, 2]", '{"images": [], "annotations": [{}], "categories": []}'])
def test_wrong_ground_truth_is_found_before_the_first_step(
    content: str, tiny_cfg: Callable[..., CfgNode], tmp_path: Path, draw_shapes: Callable[..., Path]
) -> None:
    cfg = tiny_cfg()
    register_builtin_datasets()
    DatasetCatalog.find(cfg.DATASETS.TEST[0])
    truth = Path(MetadataCatalog.get(cfg.DATASETS.TEST[0]).json_file)
    truth.write_text(content)  # which the instance evaluator alone reads
    with pytest.raises(InputError, match=truth.name):
        train(cfg)
    assert not (tmp_path / "metrics.json").exists()
    assert not list(tmp_path.glob("*.pth"))


@pytest.fixture
def _float32() -> Iterator[None]:
    matmul, conv = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = conv


@pytest.mark.usefixtures("_float32")
@pytest.mark.parametrize(("name", "allows_tf32"), [("highest", False), ("high", True), ("medium", True)])
def test_float32_precision_of_the_config_acts(name: str, allows_tf32: bool, tmp_path: Path) -> None:
    torch.set_float32_matmul_precision("medium" if name == "high" else "high")
    torch.backends.cudnn.allow_tf32 = not allows_tf32
    run_stub(stub_config(tmp_path, "FLOAT32_PRECISION", name, "SOLVER.MAX_ITER", 1))
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == (name, allows_tf32)


@pytest.mark.usefixtures("_float32")
def test_float32_precision_is_left_alone_or_refused() -> None:
    torch.set_float32_matmul_precision("high")
    set_float32_precision("")
    assert torch.get_float32_matmul_precision() == "high"
    with pytest.raises(ConfigError, match="FLOAT32_PRECISION: expected highest, high, medium or nothing, found 'tf32'"):
        set_float32_precision("tf32")
