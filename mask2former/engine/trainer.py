"""The training loop. Everything that is not a step is a hook."""

from __future__ import annotations

import contextlib
import itertools
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mask2former.engine.metrics import MetricLog
from mask2former.engine.nonfinite import LossVector, NonFiniteGuard
from mask2former.engine.optimizer import ClipGradients
from mask2former.engine.precision import Precision
from mask2former.errors import ConfigError, DatasetError, NonFiniteError

Batch = Sequence[Mapping[str, Any]]

_EXPECTED_WARNINGS = (
    "Detected call of `lr_scheduler.step",  # the schedule goes on where a step is skipped, also where it is the first
    "Grad strides do not match bucket view",  # of 1x1 convolutions in channels_last: a copy of a few values
)


class Hook:
    """Methods that are called around the steps; ``trainer.iteration`` counts from 0 and is the current step."""

    def before_train(self, trainer: Trainer) -> None:
        """Run before the first step."""

    def before_step(self, trainer: Trainer) -> None:
        """Run before each step."""

    def after_step(self, trainer: Trainer) -> None:
        """Run after each step."""

    def after_evaluation(self, trainer: Trainer, results: Mapping[str, Any]) -> None:
        """Run after each evaluation, with metrics by task, which are empty outside of the main process."""

    def after_train(self, trainer: Trainer) -> None:
        """Run after the last step, unless training fails."""

    def close(self) -> None:
        """Run at the end, also when training fails."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in checkpoints: tensors, numbers, text and containers of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""


class Trainer:
    """Runs steps ``start_iter`` to ``max_iter - 1`` over batches of dataset samples.

    The model takes a list of samples and returns weighted losses by name. ``accumulation_steps`` parts of each batch
    go through the model one after the other before one update: the same gradient as the whole batch for losses that
    are means over images, in the memory of a part. (A criterion that normalises by the objects of its batch
    normalises by those of each part.)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        batches: Iterable[Batch],
        max_iter: int,
        start_iter: int = 0,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        precision: Precision | None = None,
        clip_gradients: ClipGradients | None = None,
        accumulation_steps: int = 1,
        nonfinite: str = "stop",
        hooks: Sequence[Hook] = (),
        log: MetricLog | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.batches = batches
        self.iteration = self.start_iter = start_iter
        self.max_iter = max_iter
        self.scheduler = scheduler
        self.device = next(model.parameters()).device
        self.precision = precision or Precision(self.device.type, dtype=None)
        self.accumulation_steps = accumulation_steps
        self.hooks = list(hooks)
        self.log = MetricLog([]) if log is None else log  # for hooks that have something to write
        self.losses: LossVector | None = None  # of the current step; None when it was skipped
        self.learning_rate = 0.0  # the highest of the parameter groups, in the current step
        self.data_time = self.step_time = 0.0  # seconds; the second includes the first
        self.when_data_started: Callable[[], None] | None = None
        self.guard = NonFiniteGuard(
            nonfinite,
            deferred=self.device.type == "cuda" and bool(optimizer.defaults.get("fused")),
            tolerates_gradients=self.precision.scaler.is_enabled(),
        )
        self._clip_gradients = clip_gradients
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._iterator: Iterator[Batch] = iter(())
        self._next: Batch | None = None

    @property
    def unwrapped_model(self) -> nn.Module:
        """The model without the wrapper that averages gradients over processes."""
        return self.model.module if isinstance(self.model, DistributedDataParallel) else self.model

    def train(self) -> None:
        """Run all steps and hooks.

        Raises:
            NonFiniteError: a loss or gradient is not finite (policy "stop").
            DatasetError: the batches end.
        """
        self.model.train()
        with contextlib.ExitStack() as cleanup:
            cleanup.enter_context(warnings.catch_warnings())
            for message in _EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message, UserWarning)
            for hook in self.hooks:
                cleanup.callback(hook.close)
            if self.iteration < self.max_iter:
                self._start_data()
            elif self.when_data_started is not None:
                self.when_data_started()  # there is none to start, but an evaluation may draw random numbers
            for hook in self.hooks:
                hook.before_train(self)
            while self.iteration < self.max_iter:
                self._run_iteration()
            self.iteration = max(self.max_iter - 1, 0)
            self.guard.settle()
            for hook in self.hooks:
                hook.after_train(self)

    def _run_iteration(self) -> None:
        for hook in self.hooks:
            hook.before_step(self)
        self.run_step()
        for hook in self.hooks:
            hook.after_step(self)
        self.iteration += 1

    def run_step(self) -> None:
        """Do one update: data, losses, gradients, clipping, optimiser, schedule."""
        started = time.perf_counter()
        batch = self._next_batch()
        self.data_time = time.perf_counter() - started
        self.guard.settle()
        self.learning_rate = max(float(group["lr"]) for group in self.optimizer.param_groups)
        self.optimizer.zero_grad(set_to_none=True)
        self.losses = self._accumulate_gradients(batch)
        if self.losses is not None and not self._update(self.losses, batch):
            self.losses = None
        if self.losses is None:
            self.optimizer.zero_grad(set_to_none=True)
        if self.scheduler is not None:
            self.scheduler.step()
        self.step_time = time.perf_counter() - started

    def _accumulate_gradients(self, batch: Batch) -> LossVector | None:
        """Return losses of the batch, with the gradients left in the parameters; None: not finite, to be skipped."""
        parts = split_batch(batch, self.accumulation_steps)
        total: LossVector | None = None
        for index, part in enumerate(parts):
            with self._gradient_averaging(enabled=index == len(parts) - 1):
                vector, loss = self._forward(part)
                if loss is None or not self.guard.admits_losses(vector, part, iteration=self.iteration):
                    return None
                share = len(part) / len(batch)
                self.precision.scaler.scale(loss * share if share != 1.0 else loss).backward()
            assert vector is not None
            total = vector.scaled(share).plus(total)
        return total

    def _forward(self, part: Batch) -> tuple[LossVector | None, torch.Tensor | None]:
        try:
            with self.precision.autocast():
                losses = self.model(part)
        except NonFiniteError as error:
            # Found inside the model, for instance by the matcher; on the processes that go on the losses are refused.
            self.guard.admits_losses(None, part, iteration=self.iteration, reason=str(error))
            return None, None
        return LossVector.from_dict(losses)

    def _update(self, losses: LossVector, batch: Batch) -> bool:
        scaler = self.precision.scaler
        scaler.unscale_(self.optimizer)
        norm = self._clip_gradients(self._parameters) if self._clip_gradients else torch.zeros((), device=self.device)
        if not self.guard.admits_gradients(norm, batch, iteration=self.iteration):
            return False
        if self.guard.deferred:
            self.guard.arm(self.optimizer, losses, norm, batch, iteration=self.iteration)
        scaler.step(self.optimizer)
        scaler.update()
        return True

    def _gradient_averaging(self, *, enabled: bool) -> contextlib.AbstractContextManager[None]:
        if enabled or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def _start_data(self) -> None:
        # Starting a loader draws from the global generators; when resuming, they are restored after that.
        self._iterator = iter(self.batches)
        self._next = self._draw()
        if self.when_data_started is not None:
            self.when_data_started()

    def _next_batch(self) -> Batch:
        batch, self._next = self._next, None
        return self._draw() if batch is None else batch

    def _draw(self) -> Batch:
        try:
            batch = next(self._iterator)
        except StopIteration:
            raise DatasetError(
                f"the training data ended at iteration {self.iteration} of {self.max_iter}: the sampler must be endless"
            ) from None
        if len(batch) < self.accumulation_steps:
            raise ConfigError(
                f"SOLVER.ACCUMULATION_STEPS {self.accumulation_steps} needs at least as many images a process and "
                f"step, there are {len(batch)}: raise SOLVER.IMS_PER_BATCH"
            )
        return batch


def split_batch(batch: Batch, num_parts: int) -> list[Batch]:
    """Return consecutive parts whose sizes differ by one at most."""
    bounds = [len(batch) * i // num_parts for i in range(num_parts + 1)]
    return [batch[start:stop] for start, stop in itertools.pairwise(bounds)]
