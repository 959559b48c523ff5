"""Stages are timed by wrapping methods, which are as they were afterwards."""

from __future__ import annotations

import pytest
import torch

from mask2former.commands.analysis import StageTimer, peak_memory


class Worker:
    def work(self, value: int) -> int:
        return value + 1


def test_wrapped_method_is_timed_and_put_back() -> None:
    timer, worker = StageTimer(), Worker()
    with timer.wrap({"work": (worker, "work"), "nothing": (worker, "sleep"), "nobody": (None, "work")}):
        assert worker.work(1) == 2
        timer.end_run()
    assert timer.median("work") > 0
    assert timer.median("nothing") == 0
    assert "work" not in vars(worker)


def test_wrapped_method_is_put_back_after_an_error() -> None:
    worker = Worker()
    with pytest.raises(ZeroDivisionError), StageTimer().wrap({"work": (worker, "work")}):
        raise ZeroDivisionError
    assert "work" not in vars(worker)


def test_timer_sums_within_a_run_and_takes_the_median_over_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 9.0, 10.0, 11.0, 20.0, 22.0, 30.0, 35.0, 40.0, 47.0])
    monkeypatch.setattr("mask2former.commands.analysis.time.perf_counter", lambda: next(clock))
    timer = StageTimer()
    with timer.stage("a"):
        pass
    timer.end_run()
    timer.forget()  # the 9 s
    for num_parts in (2, 1, 1):
        for _ in range(num_parts):
            with timer.stage("a"):
                pass
        timer.end_run()
    assert timer.median("a") == 5  # of 1 + 2, 5 and 7
    assert timer.median("b") == 0


def test_peak_memory_is_that_of_this_process() -> None:
    found = peak_memory(torch.device("cpu"))
    assert found is None or 2**24 < found[1] < 2**42
