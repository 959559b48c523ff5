"""A run resumed with another config, after a kill in an evaluation, beside another run, over what is in the way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from mask2former.checkpoint import load_state
from mask2former.data.loader import MappedDataset, TestLoader
from mask2former.data.samplers import InferenceSampler
from mask2former.data.transport import DatasetFromList
from mask2former.engine.hooks import Hook
from mask2former.engine.launch import _describe_killed
from mask2former.engine.schedule import build_lr_scheduler
from mask2former.errors import CheckpointError, ConfigError, DatasetError, InputError
from mask2former.files.atomic import LOCK_FILE, locked_folder
from tests.engine.stub_training import StubData, run_stub, stub_config
from tests.engine.test_resume import assert_same_run, read_metrics

EVALUATED = ("DATASETS.TEST", "('stub',)", "TEST.EVAL_PERIOD", 4, "TEST.BEST_METRIC", "seg/PQ")
MORE = ("SOLVER.MAX_ITER", 18)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished")
    run_stub(stub_config(directory))
    return directory


@pytest.fixture
def run_folder(finished: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    for path in finished.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_resume_takes_another_learning_rate(run_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = stub_config(run_folder, *MORE, "SOLVER.BASE_LR", 0.5)
    run_stub(cfg, resume=True)
    parameter = nn.Parameter(torch.zeros(1))
    scheduler = build_lr_scheduler(cfg, torch.optim.SGD([parameter], lr=0.5))
    rates = [0.5 * scheduler.lr_lambdas[0](iteration) for iteration in (14, 17)]
    assert [line["lr"] for line in read_metrics(run_folder)[-2:]] == rates
    assert "SOLVER.BASE_LR 0.01 → 0.5" in caplog.text
    groups = load_state(run_folder / "model_final.pth")["optimizer"]["param_groups"]
    assert max(group["initial_lr"] for group in groups) == 0.5


def test_resume_takes_another_weight_decay_and_keeps_the_moments(run_folder: Path) -> None:
    run_stub(stub_config(run_folder, *MORE, "SOLVER.WEIGHT_DECAY", 0.0), resume=True)  # which makes fewer groups
    optimizer = load_state(run_folder / "model_final.pth")["optimizer"]
    assert {group["weight_decay"] for group in optimizer["param_groups"]} == {0.0}
    assert {int(state["step"]) for state in optimizer["state"].values()} == {18}


def test_resume_without_mixed_precision_of_a_run_with_it_and_the_reverse(tmp_path: Path) -> None:
    half = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "float16")
    run_stub(stub_config(tmp_path))
    run_stub(stub_config(tmp_path, *half, "SOLVER.MAX_ITER", 14), resume=True)
    run_stub(stub_config(tmp_path, "SOLVER.AMP.ENABLED", False, *MORE), resume=True)
    assert load_state(tmp_path / "model_final.pth")["iteration"] == 17


def test_resume_with_the_same_config_says_nothing_of_changes(
    run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_stub(stub_config(run_folder), resume=True)
    assert "changed since" not in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("SOLVER.MAX_ITER", 5), "SOLVER.MAX_ITER: .*model_final.pth has 12 iterations behind it.* found 5"),
        ((*MORE, "SOLVER.OPTIMIZER", "SGD"), "SOLVER.OPTIMIZER: found 'SGD', was 'ADAMW'"),
        ((*MORE, "SEED", 8), "SEED: found 8, was 7"),
        ((*MORE, "MODEL.WEIGHTS", "other.pth"), "MODEL.WEIGHTS: found 'other.pth', was ''"),
    ],
)
def test_resume_refuses_by_name_what_cannot_take_effect(
    run_folder: Path, options: tuple[Any, ...], message: str
) -> None:
    before = {path.name: path.read_bytes() for path in run_folder.iterdir() if path.name != "log.txt"}
    with pytest.raises(ConfigError, match=message):
        run_stub(stub_config(run_folder, *options), resume=True)
    assert {path.name: path.read_bytes() for path in run_folder.iterdir() if path.name != "log.txt"} == before


def test_resume_with_another_optimizer_is_refused_without_its_config_too(run_folder: Path) -> None:
    state = load_state(run_folder / "model_final.pth")
    del state["config"]
    torch.save(state, run_folder / "model_final.pth")
    with pytest.raises(CheckpointError, match=r"SOLVER\.OPTIMIZER: expected ADAMW, .* found SGD"):
        run_stub(stub_config(run_folder, *MORE, "SOLVER.OPTIMIZER", "SGD"), resume=True)


def test_resume_with_fewer_images_says_so(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(StubData, "num_samples", 5, raising=False)
    run_stub(stub_config(run_folder, *MORE), resume=True)
    assert "images to train on" not in caplog.text  # the first part did not know its number
    monkeypatch.setattr(StubData, "num_samples", 3)
    run_stub(stub_config(run_folder, "SOLVER.MAX_ITER", 19), resume=True)
    assert "was written with 5 images to train on, now there are 3" in caplog.text


class Score:
    """An evaluation whose result follows from the weights; ends the run at the ``killed_at``-th."""

    def __init__(self, killed_at: int = 0) -> None:
        self.killed_at, self.num_done = killed_at, 0

    def __call__(self, cfg: Any, model: nn.Module) -> dict[str, Any]:
        self.num_done += 1
        if self.num_done == self.killed_at:
            raise KeyboardInterrupt
        return {"seg": {"PQ": model.head.weight.detach().sum().item(), "nan": float("nan")}}


class Witness(Hook):
    """Remembers the results that hooks are told."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def after_evaluation(self, trainer: Any, results: Any) -> None:
        self.seen.append((trainer.iteration, results["seg"]["PQ"]))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("evaluated")
    run_stub(stub_config(directory, *EVALUATED), evaluate=Score())
    return directory


@pytest.mark.parametrize("killed_at", [1, 2, 3])
def test_evaluation_cut_off_is_made_up_once(tmp_path: Path, evaluated: Path, killed_at: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_stub(stub_config(tmp_path, *EVALUATED), evaluate=Score(killed_at))
    resumed, witness = Score(), Witness()
    run_stub(stub_config(tmp_path, *EVALUATED), evaluate=resumed, resume=True, hooks=[witness])
    assert resumed.num_done == 4 - killed_at
    assert_same_run(tmp_path, evaluated)
    lines, expected = ([line.get("seg/PQ") for line in read_metrics(folder)] for folder in (tmp_path, evaluated))
    assert lines == expected
    assert witness.seen[0] == (4 * killed_at - 1, [value for value in lines if value is not None][killed_at - 1])
    best = [(folder / "best_checkpoint.json").read_text() for folder in (tmp_path, evaluated)]
    assert best[0] == best[1]
    weights = [load_state(folder / "model_best.pth")["model"] for folder in (tmp_path, evaluated)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_evaluation_that_is_complete_is_not_repeated(tmp_path: Path) -> None:
    run_stub(stub_config(tmp_path, *EVALUATED), evaluate=Score())
    before = (tmp_path / "metrics.json").read_bytes()
    again, witness = Score(), Witness()
    results = run_stub(stub_config(tmp_path, *EVALUATED), evaluate=again, resume=True, hooks=[witness])
    assert (again.num_done, (tmp_path / "metrics.json").read_bytes()) == (0, before)
    assert witness.seen == [(11, results["seg"]["PQ"])]
    run_stub(stub_config(tmp_path, *EVALUATED, "INPUT.MIN_SIZE_TEST", 64), evaluate=again, resume=True)
    assert again.num_done == 1  # other images, other results
    iterations = [line["iteration"] for line in read_metrics(tmp_path)]
    assert iterations == sorted(set(iterations))


def test_damaged_records_count_as_none(tmp_path: Path) -> None:
    run_stub(stub_config(tmp_path, *EVALUATED), evaluate=Score())
    for name in ("last_evaluation.json", "best_checkpoint.json"):
        (tmp_path / name).write_text("null")
    again = Score()
    run_stub(stub_config(tmp_path, *EVALUATED), evaluate=again, resume=True)
    assert again.num_done == 1
    assert json.loads((tmp_path / "best_checkpoint.json").read_text())["iteration"] == 11


def test_run_clears_temporaries_of_dead_runs(run_folder: Path) -> None:
    left = [run_folder / ".model_0000003.0123abcd.tmp", run_folder / "inference" / ".a.0123abcd.tmp.png"]
    kept = [run_folder / ".notes.tmp", run_folder / "a.tmp"]
    for path in (*left, *kept):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    run_stub(stub_config(run_folder), resume=True)
    assert [path.exists() for path in (*left, *kept)] == [False, False, True, True]


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[int]:
    """A process that holds ``tmp_path`` until it is killed."""
    pid = os.fork()
    if pid == 0:
        with locked_folder(tmp_path):
            if os.fork() == 0:  # a data worker, which may outlive it
                time.sleep(5)
                os._exit(0)
            time.sleep(60)
        os._exit(0)
    while not (tmp_path / LOCK_FILE).is_file() or not (tmp_path / LOCK_FILE).read_text():
        time.sleep(0.01)
    yield pid
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_second_run_in_a_folder_is_refused_until_the_first_is_dead(tmp_path: Path, other_process: int) -> None:
    with pytest.raises(ConfigError, match=rf"another run writes there \(process {other_process}\)"):
        run_stub(stub_config(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK_FILE]
    os.kill(other_process, signal.SIGKILL)
    os.waitpid(other_process, 0)
    run_stub(stub_config(tmp_path))
    assert not (tmp_path / LOCK_FILE).exists()


def test_lock_refuses_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"OUTPUT_DIR .*file/run: cannot be written to: Not a directory"):
        run_stub(stub_config(tmp_path / "file" / "run"))


@pytest.mark.parametrize("content", ["null", "[1, 2]", "{", '["../model_final.pth"]', "[" * 100_000])
def test_index_that_is_none_is_passed_over(run_folder: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    (run_folder / "checkpoints.json").write_text(content)
    run_stub(stub_config(run_folder), resume=True)
    assert "checkpoints.json: not a list of checkpoints" in caplog.text
    assert f"resumed from {run_folder / 'model_final.pth'}" in caplog.text


@pytest.mark.parametrize("in_the_way", ["folder", "text", "no permission"])
def test_what_is_no_checkpoint_is_passed_over(
    run_folder: Path, in_the_way: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = run_folder / "model_final.pth"
    if in_the_way == "folder":
        content = final.read_bytes()
        final.unlink()
        final.mkdir()
        (final / "model_final.pth").write_bytes(content)  # is not of this run, whatever it holds
    elif in_the_way == "text":
        torch.save({"iteration": "eleven"}, final)
    else:
        monkeypatch.setattr("mask2former.files.inputs.open", _refuse(final), raising=False)
    with pytest.raises(InputError, match="Is a directory") if in_the_way == "folder" else contextlib.nullcontext():
        run_stub(stub_config(run_folder), resume=True)  # where the last checkpoint cannot take its place
    assert "passed over" in caplog.text
    assert f"resumed from {run_folder / 'model_0000007.pth'}" in caplog.text


def _refuse(refused: Path) -> Any:
    def open_file(path: Any, *arguments: Any, **options: Any) -> Any:
        if Path(path) == refused:
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, *arguments, **options)

    return open_file


def test_killed_data_worker_is_named() -> None:
    def kill(record: dict[str, Any]) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    records = DatasetFromList([{"file_name": f"{i}.jpg"} for i in range(2)])
    loader = TestLoader(MappedDataset(records, kill, seed=0), InferenceSampler(2), batch_size=1, num_workers=1)
    with pytest.raises(DatasetError, match=r"data worker \(process \d+\) (is killed by|exited).*NUM_WORKERS"):
        list(loader)


def test_killed_rank_is_named(tmp_path: Path) -> None:
    failure = ProcessFailure(local_rank=1, pid=4321, exitcode=-9, error_file=str(tmp_path / "none"))
    message = _describe_killed(ChildFailedError("run", {1: failure}))
    assert message.startswith("process 4321 (rank 1) was killed by SIGKILL")
    failure = ProcessFailure(local_rank=1, pid=4321, exitcode=1, error_file=str(tmp_path / "none"))
    assert _describe_killed(ChildFailedError("run", {1: failure})) == ""
