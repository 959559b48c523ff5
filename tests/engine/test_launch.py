"""Several processes: the same losses as one, errors told once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mask2former.checkpoint import load_state
from mask2former.engine.launch import _run_worker, check_num_gpus, launch, threads_per_process
from mask2former.errors import ConfigError, NonFiniteError
from tests.engine.stub_training import run_stub, stub_config

ROOT = Path(__file__).parents[2]


def run_script(*arguments: Any, launcher: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launcher, "-m", "tests.engine.stub_training", *(str(a) for a in arguments)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **threads, **environment}, capture_output=True, text=True, timeout=240
    )


def read_lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.json").read_text().splitlines()]


def assert_equal_to_rounding(actual: Path, expected: Path) -> None:
    for line, reference in zip(read_lines(actual), read_lines(expected), strict=True):
        for name in ("iteration", "loss_ce", "loss_mask", "loss_ce_0", "total_loss", "lr"):
            assert line[name] == pytest.approx(reference[name], rel=1e-4), name
    weights = load_state(expected / "model_final.pth")["model"]
    for name, tensor in load_state(actual / "model_final.pth")["model"].items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("one")
    run_stub(stub_config(directory), noisy=False)
    return directory


def test_two_processes_give_the_losses_of_one_also_when_torchrun_resumes_them(
    tmp_path: Path, one_process: Path
) -> None:
    options = ("OUTPUT_DIR", tmp_path, "SOLVER.ACCUMULATION_STEPS", 2)
    began = run_script("--num-gpus", 2, *options, "SOLVER.MAX_ITER", 9, STUB_QUIET="1")
    assert began.returncode == 0, began.stderr
    assert len(load_state(tmp_path / "model_final.pth")["random_states"]) == 2
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    resumed = run_script("--resume", *options, launcher=launcher, STUB_QUIET="1")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed from" in resumed.stdout
    assert [line["iteration"] for line in read_lines(tmp_path)] == [2, 5, 8, 11]
    assert_equal_to_rounding(tmp_path, one_process)


def test_nonfinite_on_one_process_stops_all_with_one_line_and_exit_code_one(tmp_path: Path) -> None:
    done = run_script("--num-gpus", 2, "OUTPUT_DIR", tmp_path, STUB_QUIET="1", STUB_BAD_IMAGES="25")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1
    assert "iteration 6: loss_ce_0 = nan" in done.stderr
    assert "image_25.jpg" in done.stderr
    assert load_state(tmp_path / "model_0000003.pth")["iteration"] == 3


@pytest.mark.slow
def test_nonfinite_on_one_process_is_skipped_by_all(tmp_path: Path) -> None:
    options = ("OUTPUT_DIR", tmp_path, "SOLVER.NONFINITE", "skip")
    done = run_script("--num-gpus", 2, *options, STUB_QUIET="1", STUB_BAD_IMAGES="25")
    assert done.returncode == 0, done.stderr
    assert "image_25.jpg, image_27.jpg; the step is skipped" in done.stdout
    state = load_state(tmp_path / "model_final.pth")
    assert state["optimizer"]["state"][0]["step"].item() == 11
    assert all(torch.isfinite(tensor).all() for tensor in state["model"].values())


@pytest.mark.slow
def test_bug_in_a_worker_keeps_its_traceback(tmp_path: Path) -> None:
    done = run_script("--num-gpus", 2, "OUTPUT_DIR", tmp_path, STUB_CRASH="1")
    assert done.returncode == 1
    assert "TypeError: a bug" in done.stderr


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "message", "traced"),
    [
        (ConfigError("wrong key"), 1, "wrong key", False),
        (NonFiniteError("nan"), 1, "nan", False),
        (TypeError("a bug"), 1, None, True),
        (KeyboardInterrupt(), 130, None, False),
    ],
)
def test_worker_reports_what_the_user_can_mend_and_prints_bugs(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    message: str | None,
    traced: bool,
) -> None:
    with pytest.raises(SystemExit) as caught:
        _run_worker(_raise, (error,), str(tmp_path), False)
    assert caught.value.code == code
    assert [path.read_text() for path in tmp_path.glob("*.txt")] == ([message] if message else [])
    assert ("Traceback" in capsys.readouterr().err) == traced


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_processes": 0}, "--num-gpus"),
        ({"num_processes": 1, "num_machines": 2, "machine_rank": 2}, "--machine-rank"),
        ({"num_processes": 1, "num_machines": 2}, "--dist-url"),
    ],
)
def test_launch_refuses_impossible_numbers(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        launch(print, **options)


def test_check_num_gpus_compares_with_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_num_gpus(2, "cuda")
    check_num_gpus(8, "cpu")
    with pytest.raises(ConfigError, match="--num-gpus 3: this machine has 2"):
        check_num_gpus(3, "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    check_num_gpus(3, "cuda")


def test_threads_per_process_shares_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert [threads_per_process(n) for n in (1, 2, 4, 8)] == [6, 3, 1, 1]
