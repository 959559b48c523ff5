"""Hooks around the steps, in this order: metrics, hooks from outside, checkpoints, evaluation, progress bar.

Metrics and hooks from outside come before checkpoints, because their state is part of them; checkpoints come before
evaluation, so that the training done is on the disk if it fails. ``after_evaluation`` passes results to hooks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mask2former import distributed
from mask2former.config import CfgNode, Registry
from mask2former.engine.checkpoint_folder import CheckpointFolder
from mask2former.engine.metrics import LossWindow, MetricLog, flatten_results, peak_memory_mb
from mask2former.engine.trainer import Hook, Trainer
from mask2former.engine.training_state import collect_state, preserved_random_state
from mask2former.files.atomic import write_json, write_text_atomic
from mask2former.files.json_files import read_json_if_whole

logger = logging.getLogger(__name__)

# A registered class has ``from_config``, or takes the config.
HOOK_REGISTRY = Registry("hook", key="SOLVER.HOOKS")
WRITER_REGISTRY = Registry("metric writer", key="SOLVER.WRITERS")

Results = Mapping[str, Any]


def is_due(iteration: int, period: int) -> bool:
    """Return whether a step ends a period."""
    return period > 0 and (iteration + 1) % period == 0


class PeriodicMetrics(Hook):
    """Logs, every ``period`` steps, means of losses and times since the last time."""

    def __init__(self, log: MetricLog, *, period: int) -> None:
        self._log = log
        self._period = max(period, 1)
        self._window = LossWindow()
        self._seconds: list[tuple[float, float]] = []  # (step, data)
        self._pending: dict[str, Any] | None = None

    def before_train(self, trainer: Trainer) -> None:
        if self._pending is not None:
            self._window.load_state_dict(self._pending, trainer.device)

    def after_step(self, trainer: Trainer) -> None:
        if trainer.losses is not None:
            self._window.add(trainer.losses)
        self._seconds.append((trainer.step_time, trainer.data_time))
        if is_due(trainer.iteration, self._period) or trainer.iteration + 1 == trainer.max_iter:
            self._write(trainer)

    def close(self) -> None:
        self._log.close()

    def state_dict(self) -> dict[str, Any]:
        return self._window.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._pending = state

    def _write(self, trainer: Trainer) -> None:
        losses = self._window.mean()
        step, data = (sum(column) / len(self._seconds) for column in zip(*self._seconds))
        self._window.reset()
        self._seconds.clear()
        remaining = trainer.max_iter - trainer.iteration - 1
        metrics = {"lr": trainer.learning_rate, "time": step, "data_time": data, "eta_seconds": step * remaining}
        metrics["max_mem_mb"] = peak_memory_mb(trainer.device)
        self._log.write(trainer.iteration, {**losses, **metrics})


class PeriodicCheckpoint(Hook):
    """Saves a checkpoint every ``period`` steps, and the final one."""

    def __init__(self, folder: CheckpointFolder, *, period: int, seed: int, images_per_step: int) -> None:
        self._folder = folder
        self._period = period
        self._of_run = {"seed": seed, "images_per_step": images_per_step}

    def after_step(self, trainer: Trainer) -> None:
        if is_due(trainer.iteration, self._period) and trainer.iteration + 1 < trainer.max_iter:
            self._save(trainer, final=False)

    def after_train(self, trainer: Trainer) -> None:
        if trainer.start_iter < trainer.max_iter:
            self._save(trainer, final=True)

    def _save(self, trainer: Trainer, *, final: bool) -> None:
        state = collect_state(trainer, **self._of_run)
        if distributed.is_main():
            if final:
                self._folder.save_final(state)
            else:
                self._folder.save_periodic(state, trainer.iteration)
        distributed.barrier()


class EvaluationRecord:
    """The results of the last evaluation, in a file of the output folder; a complete one is not repeated."""

    _FILE = "last_evaluation.json"
    _WITHOUT_EFFECT = ("OUTPUT_DIR", "SEED", "SOLVER", "VERBOSE")

    def __init__(self, directory: Path, cfg: CfgNode) -> None:
        self._path = directory / self._FILE
        shown = cfg.clone()
        shown.defrost()
        for key in self._WITHOUT_EFFECT:
            shown.pop(key)
        self._config = hashlib.sha256(shown.dump().encode()).hexdigest()

    def take(self, iteration: int) -> Results | None:
        """Return the results after ``iteration`` with the same config; any other record is removed."""
        record = read_json_if_whole(self._path)
        if isinstance(record, dict) and record.get("iteration") == iteration and record.get("config") == self._config:
            return record.get("results")
        if self._path.is_file():
            self._path.unlink()
        return None

    def write(self, iteration: int, results: Results) -> None:
        """Replace the record by new results."""
        write_json({"iteration": iteration, "config": self._config, "results": _as_json(results)}, self._path)


class Evaluation(Hook):
    """Evaluates every ``period`` steps and at the end, where ``evaluate_last`` may do more.

    The random generators are restored afterwards. A run that is resumed after an evaluation was due takes its results
    from the ``record``, or repeats it.
    """

    def __init__(
        self,
        evaluate: Callable[[], Results],
        log: MetricLog,
        *,
        period: int,
        evaluate_last: Callable[[], Results] | None = None,
        on_results: Callable[[Trainer, Results], None] | None = None,
        record: EvaluationRecord | None = None,
    ) -> None:
        self._evaluate = evaluate
        self._evaluate_last = evaluate_last or evaluate
        self._log = log
        self._period = period
        self._on_results = on_results
        self._record = record
        self._known: Results | None = None  # of the iteration before the first
        self.results: Results = {}

    def before_train(self, trainer: Trainer) -> None:
        last = trainer.start_iter - 1
        if self._record is not None and distributed.is_main():
            self._known = self._record.take(last)
        self._known = distributed.broadcast(self._known)
        if is_due(last, self._period) and 0 <= last < trainer.max_iter - 1:
            trainer.iteration = last
            self._run(trainer, self._evaluate)
            trainer.iteration = trainer.start_iter

    def after_step(self, trainer: Trainer) -> None:
        if is_due(trainer.iteration, self._period) and trainer.iteration + 1 < trainer.max_iter:
            self._run(trainer, self._evaluate)

    def after_train(self, trainer: Trainer) -> None:
        self._run(trainer, self._evaluate_last)

    def _run(self, trainer: Trainer, evaluate: Callable[[], Results]) -> None:
        started = time.perf_counter()
        distributed.share_buffers(trainer.unwrapped_model)
        is_known = trainer.iteration < trainer.start_iter and self._known is not None
        if self._known is not None and is_known:
            self.results = self._known if distributed.is_main() else {}
        else:
            with preserved_random_state():
                self.results = evaluate()
        if distributed.is_main():
            what = "had been evaluated" if is_known else "evaluated"
            iteration = min(trainer.iteration + 1, trainer.max_iter)
            logger.info("%s after iteration %d in %.1f s", what, iteration, time.perf_counter() - started)
            if self._on_results is not None:
                self._on_results(trainer, self.results)
            self._log.write(trainer.iteration, flatten_results(self.results))
            if self._record is not None and not is_known:
                self._record.write(trainer.iteration, self.results)  # last: all that follows from the results is done
        distributed.barrier()
        for hook in trainer.hooks:
            hook.after_evaluation(trainer, self.results)


class BestCheckpoint:
    """Saves the weights with the highest value of a metric, such as ``panoptic_seg/PQ``, on the main process."""

    _RECORD = "best_checkpoint.json"

    def __init__(self, folder: CheckpointFolder, *, metric: str, resume: bool = False) -> None:
        self._folder = folder
        self._metric = metric
        self.best = self._read_record() if resume else -math.inf

    def __call__(self, trainer: Trainer, results: Results) -> None:
        """Write ``model_best.pth`` if the results are better than any before."""
        metrics = flatten_results(results)
        if self._metric not in metrics:
            known = ", ".join(metrics)
            logger.warning("TEST.BEST_METRIC %s is not among the results: %s", self._metric, known)
            return
        value = metrics[self._metric]
        if not value > self.best:  # NaN is never better
            return
        record = {"metric": self._metric, "value": value, "iteration": trainer.iteration}
        path = self._folder.save_best({"model": trainer.unwrapped_model.state_dict(), **record})
        write_text_atomic(json.dumps(record) + "\n", self._folder.directory / self._RECORD)
        before = "" if math.isinf(self.best) else f" (before: {self.best:.4f})"
        logger.info("best %s so far: %.4f%s, written to %s", self._metric, value, before, path)
        self.best = value

    def _read_record(self) -> float:
        record = read_json_if_whole(self._folder.directory / self._RECORD)
        is_known = isinstance(record, dict) and record.get("metric") == self._metric
        value = record.get("value") if is_known else None
        return float(value) if isinstance(value, int | float) else -math.inf


def _as_json(results: Results) -> dict[str, Any]:
    return {
        str(name): _as_json(value) if isinstance(value, Mapping) else float(value) for name, value in results.items()
    }


class ProgressBar(Hook):
    """Draws a progress bar on the terminal."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def before_train(self, trainer: Trainer) -> None:
        self._bar = tqdm(total=trainer.max_iter, initial=trainer.iteration, desc="training", unit="it", leave=False)

    def after_step(self, trainer: Trainer) -> None:
        if self._bar is not None:
            self._bar.update()

    def after_train(self, trainer: Trainer) -> None:
        self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
