"""A training that is killed at random moments and resumed equals one that was not; `make chaos` kills it more often."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.faults.chaos import _compare
from tests.faults.file_boundaries import crash_everywhere

ROOT = Path(__file__).parents[2]


def test_killed_runs_equal_an_undisturbed_one() -> None:
    # In a process of its own: it forks, which the threads of this one would not survive.
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.chaos", "5"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("5 kills")


@pytest.mark.slow
def test_run_killed_at_changes_of_its_files_comes_back(tmp_path: Path) -> None:
    pytest.importorskip("ckpt_chaos", reason="needs the extra [chaos]")
    done = crash_everywhere(tmp_path / "runs", 5)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS: " in done.stdout


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ({"a": torch.ones(2)}, {"a": torch.tensor([1.0, 1.0 + 1e-7])}),
        ({"a": torch.ones(2)}, {"a": torch.ones(2), "b": 1}),
        ([1, 2], [1, 2, 3]),
        ({"a": [{"b": 1}]}, {"a": [{"b": 2}]}),
        (torch.ones(2), torch.ones(2, dtype=torch.float64)),
    ],
)
def test_comparison_sees_the_last_bit(actual: object, expected: object) -> None:
    assert _compare(actual, expected, "x")
    assert not _compare(expected, expected, "x")
