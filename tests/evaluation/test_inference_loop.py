"""Running a model over a loader: modes, order, progress, and evaluators put together."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mask2former.evaluation import DatasetEvaluator, DatasetEvaluators, inference_on_dataset


class Echo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.frozen = nn.BatchNorm2d(1)
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.modes.append((self.training, torch.is_grad_enabled()))
        return [{"value": self.weight * image["value"]} for image in inputs]


class Total(DatasetEvaluator):
    def __init__(self, task: str = "total") -> None:
        self.task = task
        self.sum = 100.0

    def reset(self) -> None:
        self.sum = 0.0

    def process(self, inputs: Any, outputs: Any) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            assert float(output["value"]) == image["value"]
            self.sum += float(output["value"])

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        return {self.task: {"sum": self.sum}}


BATCHES = [[{"value": 1.0}, {"value": 2.0}], [{"value": 3.0}], [{"value": 4.0}], [{"value": 5.0}]]


def test_inference_runs_in_evaluation_mode_and_restores_every_mode() -> None:
    model = Echo().train()
    model.frozen.eval()
    assert inference_on_dataset(model, BATCHES, Total()) == {"total": {"sum": 15.0}}
    assert model.modes == [(False, False)] * 4
    assert model.training
    assert not model.frozen.training
    assert torch.is_grad_enabled()


def test_inference_restores_the_mode_after_an_error() -> None:
    model = Echo().train()
    with pytest.raises(KeyError):
        inference_on_dataset(model, [[{}]], Total())
    assert model.training


@pytest.mark.parametrize("batches", [[], BATCHES[:1], BATCHES])
def test_inference_accepts_any_number_of_batches_and_iterators(batches: list[Any]) -> None:
    expected = {"total": {"sum": sum(image["value"] for batch in batches for image in batch)}}
    assert inference_on_dataset(Echo(), iter(batches), [Total()]) == expected


def test_inference_without_evaluator_runs_the_model() -> None:
    model = Echo()
    assert inference_on_dataset(model, BATCHES, None) is None
    assert len(model.modes) == 4


def test_inference_logs_time_by_stage(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        inference_on_dataset(Echo(), BATCHES, Total(), progress=False)
    assert "inference over 5 images" in caplog.text
    assert "data" in caplog.text
    assert "ms an image" in caplog.text


def test_inference_draws_a_bar_or_logs_lines(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mask2former.evaluation.inference._SECONDS_BETWEEN_LOG_LINES", -1.0)
    with caplog.at_level(logging.INFO):
        inference_on_dataset(Echo(), BATCHES, Total(), progress=True)
        assert "evaluating: 100%" in capsys.readouterr().err
        assert "evaluated batch" not in caplog.text
        inference_on_dataset(Echo(), BATCHES, Total(), progress=False)
        assert "evaluating" not in capsys.readouterr().err
        assert "evaluated batch 2 of 4" in caplog.text


def test_evaluators_merge_results_and_refuse_one_task_twice() -> None:
    assert DatasetEvaluators([Total("a"), Total("b")]).evaluate() == {"a": {"sum": 100.0}, "b": {"sum": 100.0}}
    with pytest.raises(ValueError, match="task 'a'"):
        DatasetEvaluators([Total("a"), Total("a")]).evaluate()


def test_evaluators_off_the_main_process_have_no_results() -> None:
    silent = SimpleNamespace(evaluate=lambda: None)
    assert DatasetEvaluators([silent, silent]).evaluate() is None  # type: ignore[list-item]
    assert DatasetEvaluators([]).evaluate() == {}
