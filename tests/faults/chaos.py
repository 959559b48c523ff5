"""Kills a tiny training at random moments, resumes it, and compares it bit by bit with one that was left alone.

python -m tests.faults.chaos [KILLS] [--seed N]. Each run is forked from this process, which has imported everything, so
that one kill costs a fraction of a second. A run may be killed several times before it is let through to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.utils.tensorboard  # once, not in each run
from torch import nn
from tqdm import tqdm

from mask2former.checkpoint import load_state
from mask2former.files.atomic import _IS_TEMPORARY
from tests.engine.stub_training import run_stub, stub_config

# Checkpoints and evaluations fall together at 12 and 24, each alone elsewhere; the last step belongs to neither period.
OPTIONS = (
    *("SOLVER.MAX_ITER", 26, "SOLVER.CHECKPOINT_PERIOD", 4, "SOLVER.MAX_TO_KEEP", 3, "SOLVER.LOG_PERIOD", 5),
    *("DATASETS.TEST", "('stub',)", "TEST.EVAL_PERIOD", 3, "TEST.BEST_METRIC", "seg/PQ"),
)
EVALUATING = "evaluating"  # a file that is there while an evaluation runs
_TIMES = ("time", "data_time", "eta_seconds", "max_mem_mb")
_KILLED_AGAIN = 0.5  # chance
_PATIENCE = 120.0  # seconds for a run


class SlowScore:
    """An evaluation that follows from the weights and a random number, and takes long enough to be killed in."""

    def __init__(self, folder: Path) -> None:
        self._mark = folder / EVALUATING

    def __call__(self, cfg: Any, model: nn.Module) -> dict[str, Any]:
        self._mark.touch()
        time.sleep(0.005)
        noise = torch.rand(1).item()  # as the generators were, also when it is made up
        score = model.head.weight.detach().sum().item() + noise  # type: ignore[union-attr, operator]
        self._mark.unlink(missing_ok=True)
        return {"seg": {"PQ": score, "PQ-nothing": float("nan")}}


def start(folder: Path, *, resume: bool) -> int:
    """The id of a forked process that trains; what it prints goes to ``output.txt``."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        # The one that is inherited lies in shared memory: held by a process that is killed, it is held for all.
        tqdm.set_lock(threading.RLock())
        run_stub(stub_config(folder, *OPTIONS), resume=resume, evaluate=SlowScore(folder))
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait_for(pid: int, folder: Path) -> None:
    """Waits for the run's end; raises RuntimeError where it fails or takes too long."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            break
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise RuntimeError(f"{folder}: no end after {_PATIENCE:g} s")
        time.sleep(0.002)
    if status:
        raise RuntimeError(
            f"{folder}: resumed, it ends with status {status}:\n{(folder / 'output.txt').read_text()[-3000:]}"
        )


def kill_after(pid: int, seconds: float, then: Callable[[], bool], delay: float) -> bool:
    """Kills the run ``delay`` after ``then`` holds, once ``seconds`` are over; False where it had ended before."""
    begin = time.monotonic() + seconds
    while time.monotonic() < begin or (not then() and time.monotonic() < begin + _PATIENCE):
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        time.sleep(0.0005 if time.monotonic() > begin else 0.002)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def is_writing(folder: Path) -> bool:
    """A temporary file is there, which is to take the place of a checkpoint or record."""
    return any(_IS_TEMPORARY.fullmatch(name) for name in os.listdir(folder))


def moment_of(folder: Path) -> str:
    """What the killed run was about, as its folder tells."""
    if is_writing(folder):
        return "while writing a file"
    if (folder / EVALUATING).exists():
        return "in an evaluation"
    if not (folder / "model_0000003.pth").exists():
        return "before the first checkpoint"
    if (folder / "model_final.pth").exists():
        return "after the last checkpoint"
    return "between"


def differences(folder: Path, expected: Path) -> list[str]:
    """What differs from the run that was left alone: weights, optimiser, generators, best checkpoint, metrics."""
    found = []
    for name in ("model_final.pth", "model_best.pth"):
        found += _compare(load_state(folder / name), load_state(expected / name), name)
    found += _compare(_metrics(folder), _metrics(expected), "metrics.json")
    for name in ("best_checkpoint.json", "last_evaluation.json", "checkpoints.json", "last_checkpoint"):
        if (folder / name).read_text() != (expected / name).read_text():
            found.append(f"{name}: {(folder / name).read_text()!r}")
    left = [path.name for path in folder.rglob(".*")]
    return found + [f"{name} is left" for name in left]


def _metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in _TIMES} for line in lines]


def _compare(actual: Any, expected: Any, where: str) -> list[str]:
    if isinstance(expected, dict) and isinstance(actual, dict) and list(actual) == list(expected):
        return [line for key in expected for line in _compare(actual[key], expected[key], f"{where}[{key!r}]")]
    if isinstance(expected, list | tuple) and isinstance(actual, list | tuple) and len(actual) == len(expected):
        pairs = enumerate(zip(actual, expected, strict=True))
        return [line for index, (a, e) in pairs for line in _compare(a, e, f"{where}[{index}]")]
    if isinstance(expected, torch.Tensor) and isinstance(actual, torch.Tensor):
        return [] if actual.dtype == expected.dtype and torch.equal(actual, expected) else [where]
    if where.endswith("['config']"):  # which names the folder
        return []
    return [] if actual == expected else [f"{where}: {actual!r:.80}, expected {expected!r:.80}"]


class Chaos:
    """Kills until there were enough, and counts."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random = root, random.Random(seed)
        self.moments: Counter[str] = Counter()
        self.num_runs = 0
        self.expected = self._folder("undisturbed")
        started = time.monotonic()
        wait_for(start(self.expected, resume=False), self.expected)
        self.seconds = time.monotonic() - started

    def disturb(self, most: int, tell: Callable[[int], object]) -> list[str]:
        """Kills one run up to ``most`` times, lets it end, and returns what differs."""
        folder = self._folder(f"run_{self.num_runs:05d}")
        self.num_runs += 1
        is_begun = False
        for _ in range(most):
            pid = start(folder, resume=is_begun)
            is_begun = True
            if not kill_after(pid, self.random.uniform(0, 1.1 * self.seconds), *self._moment(folder)):
                break
            self.moments[moment_of(folder)] += 1
            (folder / EVALUATING).unlink(missing_ok=True)
            tell(1)
            if self.random.random() > _KILLED_AGAIN:
                break
        started = time.monotonic()
        wait_for(start(folder, resume=True), folder)
        # Machines get slower and faster; moments are to be spread over the whole of a run.
        self.seconds = max(0.9 * self.seconds, time.monotonic() - started)
        found = differences(folder, self.expected)
        if not found:
            shutil.rmtree(folder)
        return found and [str(folder), *found]

    def _moment(self, folder: Path) -> tuple[Callable[[], bool], float]:
        """What to wait for, and how long then: half of the kills come at any time, others where most is at stake."""
        kind = self.random.random()
        if kind < 0.5:
            return (lambda: True), 0.0
        if kind < 0.8:
            return (lambda: is_writing(folder)), self.random.uniform(0, 0.003)
        return (folder / EVALUATING).exists, self.random.uniform(0, 0.01)

    def _folder(self, name: str) -> Path:
        folder = self.root / name
        folder.mkdir()
        return folder


def main() -> int:
    """Kills as often as the command line says; 1 where a run differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kills", nargs="?", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; by default drawn")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a forked process has no others
    seed = random.SystemRandom().randrange(2**31) if args.seed is None else args.seed
    root = Path(tempfile.mkdtemp(prefix="mask2former-chaos-"))
    started, failures = time.monotonic(), []
    chaos = Chaos(root, seed)
    with tqdm(total=args.kills, desc="kills", unit="kill", disable=None) as bar:
        while (left := args.kills - chaos.moments.total()) > 0:
            if found := chaos.disturb(left, bar.update):
                failures.append("\n  ".join(found[:8]))
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = chaos.moments.total()
    print(
        f"{total} kills (seed {seed}) of {chaos.num_runs} runs in {time.monotonic() - started:.0f} s, "
        f"{(usage.ru_utime + usage.ru_stime) / max(total, 1):.2f} s of CPU each"
    )
    print("\n".join(f"  {number:5d} {moment}" for moment, number in chaos.moments.most_common()))
    if failures:
        print(
            f"{len(failures)} runs differ from the one that was left alone ({chaos.expected}):\n" + "\n".join(failures)
        )
        return 1
    print("all equal: weights, optimiser, generators, metrics, best checkpoint")
    shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
