"""A run that is killed and resumed ends with the weights of a run that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mask2former.checkpoint import load_state
from mask2former.errors import CheckpointError
from tests.engine.stub_training import run_stub, stub_config

ROOT = Path(__file__).parents[2]
NUM_STEPS = 40
OPTIONS = ("SOLVER.MAX_ITER", NUM_STEPS, "SOLVER.CHECKPOINT_PERIOD", 7)


def start(*options: Any, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.engine.stub_training", *(str(option) for option in options)]
    # As many threads as in this process: sums are split among threads, and their order decides the last bits.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(torch.get_num_threads()))
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **threads, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def assert_same_run(actual: Path, expected: Path) -> None:
    """Equal to the last bit: weights, optimiser, generators; and metrics without gaps or repetitions."""
    states = [load_state(directory / "model_final.pth") for directory in (actual, expected)]
    for name, tensor in states[1]["model"].items():
        assert torch.equal(states[0]["model"][name], tensor), name
    for index, moments in states[1]["optimizer"]["state"].items():
        for name, tensor in moments.items():
            assert torch.equal(states[0]["optimizer"]["state"][index][name], tensor), name
    assert torch.equal(states[0]["random_states"][0]["torch"], states[1]["random_states"][0]["torch"])
    assert states[0]["random_states"][0]["python"] == states[1]["random_states"][0]["python"]
    lines = [read_metrics(directory) for directory in (actual, expected)]
    assert [line["iteration"] for line in lines[0]] == [line["iteration"] for line in lines[1]]
    for line, reference in zip(*lines):
        assert {k: v for k, v in line.items() if "loss" in k} == {k: v for k, v in reference.items() if "loss" in k}
        assert line.get("lr") == reference.get("lr")  # an evaluation's own line has none


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.json").read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("unbroken")
    run_stub(stub_config(directory, *OPTIONS))
    return directory


def test_killed_run_resumes_to_equal_bits(tmp_path: Path, unbroken: Path) -> None:
    killed = start("OUTPUT_DIR", tmp_path, *OPTIONS, STUB_STEP_SECONDS="0.08")
    deadline = time.monotonic() + 120
    while not (tmp_path / "model_0000013.pth").exists() and time.monotonic() < deadline and killed.poll() is None:
        time.sleep(0.02)
    time.sleep(0.1)  # some steps beyond the checkpoint
    assert killed.poll() is None, killed.communicate()[0]
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "model_final.pth").exists()
    resumed = start("--resume", "OUTPUT_DIR", tmp_path, *OPTIONS)
    output = resumed.communicate(timeout=120)[0]
    assert resumed.returncode == 0, output
    assert "resumed from" in output
    assert_same_run(tmp_path, unbroken)


@pytest.mark.parametrize("damage", ["truncated", "changed byte", "empty", "absent"])
def test_torn_last_checkpoint_is_passed_over(
    tmp_path: Path, unbroken: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    run_stub(stub_config(tmp_path, *OPTIONS))
    (tmp_path / "model_final.pth").unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000034.pth")
    last = tmp_path / "model_0000034.pth"
    content = bytearray(last.read_bytes())
    if damage == "changed byte":
        content[len(content) * 3 // 4] ^= 0xFF  # within the state of a generator, the largest record
    last.write_bytes(content if damage == "changed byte" else content[: 0 if damage == "empty" else 3000])
    if damage == "absent":
        last.unlink()
    run_stub(stub_config(tmp_path, *OPTIONS), resume=True)
    assert "model_0000034.pth" in next(record.message for record in caplog.records if "passed over" in record.message)
    assert f"resumed from {tmp_path / 'model_0000027.pth'}: next iteration 28" in caplog.text
    assert_same_run(tmp_path, unbroken)


def test_resume_refuses_when_no_checkpoint_is_readable(tmp_path: Path) -> None:
    run_stub(stub_config(tmp_path))
    for path in tmp_path.glob("model_*.pth"):
        path.write_bytes(b"PK torn")
    metrics = read_metrics(tmp_path)
    with pytest.raises(CheckpointError, match="none of 3 checkpoints can be resumed"):
        run_stub(stub_config(tmp_path), resume=True)
    assert read_metrics(tmp_path) == metrics


def test_resume_without_checkpoint_starts_from_the_beginning(tmp_path: Path, unbroken: Path) -> None:
    run_stub(stub_config(tmp_path, *OPTIONS), resume=True)
    assert_same_run(tmp_path, unbroken)


def test_resume_of_finished_run_changes_nothing(tmp_path: Path) -> None:
    run_stub(stub_config(tmp_path))
    before = (tmp_path / "model_final.pth").read_bytes(), (tmp_path / "metrics.json").read_bytes()
    run_stub(stub_config(tmp_path), resume=True)
    assert ((tmp_path / "model_final.pth").read_bytes(), (tmp_path / "metrics.json").read_bytes()) == before


def test_resume_continues_beyond_the_end_when_there_is_more_to_do(tmp_path: Path) -> None:
    run_stub(stub_config(tmp_path))
    run_stub(stub_config(tmp_path, "SOLVER.MAX_ITER", 18), resume=True)
    assert load_state(tmp_path / "model_final.pth")["iteration"] == 17
    assert [line["iteration"] for line in read_metrics(tmp_path)] == [2, 5, 8, 11, 14, 17]


def test_resume_of_another_model_is_refused(tmp_path: Path) -> None:
    cfg = stub_config(tmp_path)
    run_stub(cfg)
    state = load_state(tmp_path / "model_final.pth")
    del state["model"]["head.weight"]
    torch.save(state, tmp_path / "model_final.pth")
    with pytest.raises(CheckpointError, match=r"another model[\s\S]*head\.weight"):
        run_stub(stub_config(tmp_path, "SOLVER.MAX_ITER", 18), resume=True)


def test_resume_of_an_optimizer_that_names_nothing_is_refused(tmp_path: Path) -> None:
    run_stub(stub_config(tmp_path))
    state = load_state(tmp_path / "model_final.pth")
    for group in state["optimizer"]["param_groups"]:
        del group["param_names"]
    torch.save(state, tmp_path / "model_final.pth")
    with pytest.raises(CheckpointError, match="cannot be resumed with this configuration: its optimiser does not name"):
        run_stub(stub_config(tmp_path, "SOLVER.MAX_ITER", 18), resume=True)


def test_new_run_in_used_folder_sets_metrics_aside_and_is_not_mixed_with_the_old(tmp_path: Path) -> None:
    run_stub(stub_config(tmp_path))
    old_metrics = (tmp_path / "metrics.json").read_bytes()
    run_stub(stub_config(tmp_path, "SOLVER.MAX_ITER", 3, "SOLVER.CHECKPOINT_PERIOD", 100, "SEED", 8))
    assert (tmp_path / "metrics_1.json").read_bytes() == old_metrics
    (tmp_path / "model_final.pth").unlink()
    (tmp_path / "last_checkpoint").unlink()
    # Killed before its first checkpoint, the new run has nothing to resume, whatever the old one left.
    (tmp_path / "checkpoints.json").write_text("[]")
    run_stub(stub_config(tmp_path, "SOLVER.MAX_ITER", 3, "SEED", 8), resume=True)
    assert [line["iteration"] for line in read_metrics(tmp_path)] == [2]


def test_random_seed_is_drawn_saved_and_resumed(tmp_path: Path) -> None:
    run_stub(stub_config(tmp_path, "SEED", -1))
    seed = load_state(tmp_path / "model_final.pth")["seed"]
    assert seed >= 0
    assert f"SEED: {seed}\n" in (tmp_path / "config.yaml").read_text()
    run_stub(stub_config(tmp_path, "SEED", -1, "SOLVER.MAX_ITER", 14), resume=True)
    assert load_state(tmp_path / "model_final.pth")["seed"] == seed


def test_max_to_keep_removes_oldest_checkpoints(tmp_path: Path) -> None:
    run_stub(stub_config(tmp_path, "SOLVER.MAX_ITER", 20, "SOLVER.MAX_TO_KEEP", 2))
    assert sorted(path.name for path in tmp_path.glob("model_*.pth")) == [
        "model_0000011.pth",
        "model_0000015.pth",
        "model_final.pth",
    ]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
