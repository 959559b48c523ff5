"""Files a run writes, evaluation in the loop and the best checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mask2former.checkpoint import load_state
from mask2former.engine import hooks as hooks_module
from mask2former.engine.hooks import ProgressBar
from mask2former.engine.logging import describe_results
from mask2former.engine.metrics import JsonWriter, LossWindow, flatten_results, format_duration
from mask2former.engine.nonfinite import LossVector
from mask2former.engine.scaling import describe_scaling, scale_to_world_size
from mask2former.errors import ConfigError
from tests.engine.stub_training import run_stub, stub_config


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class _Evaluation:
    """Gives the values of a list in turn, and uses the random generator."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def __call__(self, cfg: Any, model: nn.Module) -> dict[str, Any]:
        torch.rand(3)
        return {"panoptic_seg": {"PQ": self.values.pop(0), "PQ-cat": math.nan}}


def evaluated_config(directory: Path, *options: Any) -> Any:
    return stub_config(
        directory, "DATASETS.TEST", "('stub',)", "TEST.EVAL_PERIOD", 4, "TEST.BEST_METRIC", "panoptic_seg/PQ", *options
    )


def test_run_writes_metrics_tensorboard_log_and_config(tmp_path: Path) -> None:
    results = run_stub(evaluated_config(tmp_path), evaluate=_Evaluation(10.0, 30.0, 20.0))
    assert results["panoptic_seg"]["PQ"] == 20.0
    lines = read_lines(tmp_path / "metrics.json")
    assert [line["iteration"] for line in lines] == [2, 3, 5, 7, 8, 11]
    assert {"loss_ce", "loss_mask", "loss_ce_0", "total_loss", "lr", "time", "data_time", "eta_seconds"} <= set(
        lines[0]
    )
    assert lines[0]["total_loss"] == pytest.approx(sum(lines[0][k] for k in ("loss_ce", "loss_mask", "loss_ce_0")))
    assert lines[1] == {"iteration": 3, "panoptic_seg/PQ": 10.0, "panoptic_seg/PQ-cat": None}
    assert lines[-1]["panoptic_seg/PQ"] == 20.0
    assert lines[-1]["eta_seconds"] == 0
    assert lines[-1]["lr"] == pytest.approx(0.001)  # after the step at 8
    log = (tmp_path / "log.txt").read_text()
    assert "loss_ce_0" not in log
    line = next(line for line in log.splitlines() if "iter: 3/12" in line)
    order = [line.index(f"{name}: ") for name in ("eta", "iter", "loss_ce", "loss_mask", "total_loss", "time", "lr")]
    assert order == sorted(order)
    assert "MAX_ITER: 12\n" in (tmp_path / "config.yaml").read_text()


def test_tensorboard_holds_the_metrics(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_stub(evaluated_config(tmp_path), evaluate=_Evaluation(10.0, 30.0, 20.0))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("total_loss")] == [2, 5, 8, 11]
    assert [event.value for event in events.Scalars("panoptic_seg/PQ")] == [10.0, 30.0, 20.0]


def test_best_checkpoint_keeps_highest_value(tmp_path: Path) -> None:
    run_stub(evaluated_config(tmp_path), evaluate=_Evaluation(10.0, 30.0, 20.0))
    best = load_state(tmp_path / "model_best.pth")
    assert (best["value"], best["iteration"]) == (30.0, 7)
    expected = load_state(tmp_path / "model_0000007.pth")["model"]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in best["model"].items())


def test_best_checkpoint_survives_resume_and_nan(tmp_path: Path) -> None:
    run_stub(evaluated_config(tmp_path), evaluate=_Evaluation(10.0, 30.0, math.nan))
    run_stub(evaluated_config(tmp_path, "SOLVER.MAX_ITER", 18), evaluate=_Evaluation(25.0, 29.0), resume=True)
    assert load_state(tmp_path / "model_best.pth")["value"] == 30.0
    run_stub(evaluated_config(tmp_path, "SOLVER.MAX_ITER", 19), evaluate=_Evaluation(31.0), resume=True)
    assert load_state(tmp_path / "model_best.pth")["value"] == 31.0


def test_best_checkpoint_warns_of_unknown_metric(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = evaluated_config(tmp_path, "TEST.BEST_METRIC", "segm/AP")
    run_stub(cfg, evaluate=_Evaluation(1.0, 2.0, 3.0))
    assert "TEST.BEST_METRIC segm/AP is not among the results: panoptic_seg/PQ" in caplog.text
    assert not (tmp_path / "model_best.pth").exists()


def test_evaluation_leaves_no_trace_in_training(tmp_path: Path) -> None:
    run_stub(evaluated_config(tmp_path / "a"), evaluate=_Evaluation(1.0, 2.0, 3.0))
    run_stub(stub_config(tmp_path / "b"))
    states = [load_state(tmp_path / name / "model_final.pth")["model"] for name in "ab"]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_failing_evaluation_keeps_the_checkpoint_before_it(tmp_path: Path) -> None:
    def fail(cfg: Any, model: nn.Module) -> Any:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run_stub(evaluated_config(tmp_path), evaluate=fail)
    assert load_state(tmp_path / "model_0000003.pth")["iteration"] == 3


def test_json_writer_drops_later_and_torn_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 4, "a": 1}\n{"iteration": 9, "a": 2}\n{"iteration": 14, "a": 3}\n{"itera')
    writer = JsonWriter(path, start_iter=10)
    writer.write(12, {"a": 4.0})
    writer.write(12, {"b": math.inf})
    writer.close()
    assert read_lines(path) == [
        {"iteration": 4, "a": 1},
        {"iteration": 9, "a": 2},
        {"iteration": 12, "a": 4.0, "b": None},
    ]


def test_loss_window_averages_finite_steps_and_restarts() -> None:
    window = LossWindow()
    assert window.mean() == {}
    for values in ([1.0, 2.0], [3.0, 6.0], [float("nan"), 1.0]):
        window.add(LossVector(("loss_a", "loss_b"), torch.tensor(values)))
    restored = LossWindow()
    restored.load_state_dict(window.state_dict(), torch.device("cpu"))
    assert restored.mean() == window.mean() == {"loss_a": 2.0, "loss_b": 4.0, "total_loss": 6.0}
    window.add(LossVector(("loss_c",), torch.tensor([5.0])))
    assert window.mean() == {"loss_c": 5.0, "total_loss": 5.0}
    window.reset()
    window.add(LossVector(("loss_c",), torch.tensor([float("inf")])))
    assert window.mean() == {}


def test_progress_bar_advances_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []

    class Bar(hooks_module.tqdm):  # type: ignore[name-defined, misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            shown.append(self)

    monkeypatch.setattr(hooks_module, "tqdm", Bar)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    run_stub(stub_config(tmp_path))
    assert isinstance(ProgressBar(), hooks_module.Hook)
    assert [(bar.n, bar.total) for bar in shown] == [(12, 12)]


def test_scale_to_world_size_keeps_images_of_each_process(tmp_path: Path) -> None:
    cfg = stub_config(
        tmp_path, "SOLVER.REFERENCE_WORLD_SIZE", 8, "SOLVER.IMS_PER_BATCH", 16, "SOLVER.MAX_ITER", 100,
        "SOLVER.STEPS", "(60, 80)", "TEST.EVAL_PERIOD", 10,
    )  # fmt: skip
    scaled = scale_to_world_size(cfg, 2)
    assert scaled.SOLVER.IMS_PER_BATCH == 4
    assert pytest.approx(0.0025) == scaled.SOLVER.BASE_LR
    assert (scaled.SOLVER.MAX_ITER, tuple(scaled.SOLVER.STEPS)) == (400, (240, 320))
    assert (scaled.SOLVER.WARMUP_ITERS, scaled.SOLVER.CHECKPOINT_PERIOD, scaled.TEST.EVAL_PERIOD) == (12, 16, 40)
    assert cfg.SOLVER.IMS_PER_BATCH == 16
    assert scaled.is_frozen()
    assert "SOLVER.IMS_PER_BATCH 16 → 4" in describe_scaling(cfg, scaled)


def test_scale_to_world_size_leaves_config_without_reference_alone(tmp_path: Path) -> None:
    cfg = stub_config(tmp_path)
    scaled = scale_to_world_size(cfg, 2)
    assert scaled == cfg
    assert describe_scaling(cfg, scaled) == ""
    with pytest.raises(ConfigError, match="multiple of their number 3, found 4"):
        scale_to_world_size(cfg, 3)


def test_flatten_results_and_duration() -> None:
    assert flatten_results({"a": {"segm": {"AP": 1}}, "b": 2.0}) == {"a/segm/AP": 1.0, "b": 2.0}
    assert format_duration(93784.9) == "1 day, 2:03:04"


def test_describe_results_names_datasets_and_leaves_out_classes() -> None:
    metrics = {"segm": {"AP": 12.3456, "AP-circle": 1.0}}
    assert describe_results(metrics) == "segm: AP 12.346"
    assert describe_results({"first": metrics, "second": metrics}).splitlines() == [
        "first:",
        "  segm: AP 12.346",
        "second:",
        "  segm: AP 12.346",
    ]
