"""Run a model over a data set and pass its results to evaluators."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from mask2former import distributed
from mask2former.evaluation.protocol import DatasetEvaluator, DatasetEvaluators, Results

logger = logging.getLogger(__name__)

# The first batches pay for caches, kernel selection and worker start: their time says nothing about the rest.
_NUM_WARMUP_BATCHES = 3
_SECONDS_BETWEEN_LOG_LINES = 10.0


def inference_on_dataset(
    model: nn.Module,
    data_loader: Iterable[Sequence[Mapping[str, Any]]],
    evaluator: DatasetEvaluator | Sequence[DatasetEvaluator] | None,
    *,
    progress: bool | None = None,
) -> Results | None:
    """Run the model, in evaluation mode and without gradients, over all batches, and evaluate its results.

    The mode of every submodule is restored afterwards.

    Args:
        model: takes a batch, a list of dicts, and returns a list of results.
        data_loader: yields batches.
        evaluator: None only measures speed.
        progress: whether to draw a bar; by default where stderr is a terminal, with log lines elsewhere.

    Returns:
        Metrics by task on the main process, None on others and without an evaluator.
    """
    if evaluator is None or isinstance(evaluator, Sequence):
        evaluator = DatasetEvaluators(list(evaluator or []))
    num_batches = len(data_loader) if isinstance(data_loader, Sized) else None
    evaluator.reset()
    clock = _StageClock()
    with _evaluation_mode(model), torch.no_grad(), _Progress(num_batches, progress) as shown:
        clock.start()
        for inputs in data_loader:
            clock.stop("data")
            outputs = model(inputs)
            _synchronize()
            clock.stop("model")
            evaluator.process(inputs, outputs)
            clock.stop("evaluation")
            clock.end_batch(len(inputs))
            shown.advance(clock)
    logger.info("inference over %d images: %s", clock.num_images, clock.describe())
    started = time.perf_counter()
    results = evaluator.evaluate()
    logger.info("metrics took %.1f s", time.perf_counter() - started)
    return results or None


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    # model.train() would also wake parts that were frozen in evaluation mode on purpose.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _synchronize() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


class _StageClock:
    """Seconds spent in data, model and evaluation, warm-up batches left out once there are others."""

    def __init__(self) -> None:
        self.num_images = self.num_batches = 0
        self._images_measured = 0
        self._totals = {"data": 0.0, "model": 0.0, "evaluation": 0.0}
        self._mark = 0.0

    def start(self) -> None:
        self._mark = time.perf_counter()

    def stop(self, stage: str) -> None:
        now = time.perf_counter()
        self._totals[stage] += now - self._mark
        self._mark = now

    def end_batch(self, num_images: int) -> None:
        self.num_batches += 1
        self.num_images += num_images
        self._images_measured += num_images
        if self.num_batches == _NUM_WARMUP_BATCHES:
            self._warm_totals, self._warm_images = self._totals, self._images_measured
            self._totals, self._images_measured = dict.fromkeys(self._totals, 0.0), 0

    def describe(self) -> str:
        totals, num_images = self._totals, self._images_measured
        if num_images == 0 and self.num_batches:
            totals, num_images = self._warm_totals, self._warm_images
        num_images = max(num_images, 1)
        split = ", ".join(f"{stage} {1e3 * seconds / num_images:.1f}" for stage, seconds in totals.items())
        return f"{1e3 * sum(totals.values()) / num_images:.1f} ms an image ({split})"


class _Progress:
    """A bar on a terminal, a log line every few seconds elsewhere; silent off the main process."""

    def __init__(self, num_batches: int | None, draw_bar: bool | None) -> None:
        draw_bar = sys.stderr.isatty() if draw_bar is None else draw_bar
        self._bar = tqdm(
            total=num_batches, desc="evaluating", unit="batch", disable=not (draw_bar and distributed.is_main())
        )
        self._num_batches = num_batches
        self._last_line = time.perf_counter()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def advance(self, clock: _StageClock) -> None:
        self._bar.update()
        now = time.perf_counter()
        if self._bar.disable and distributed.is_main() and now - self._last_line > _SECONDS_BETWEEN_LOG_LINES:
            self._last_line = now
            total = "?" if self._num_batches is None else self._num_batches
            logger.info("evaluated batch %d of %s: %s", clock.num_batches, total, clock.describe())
