"""What happens to a step whose loss or gradient is infinite or not a number: it never reaches the weights.

On a CPU the values are looked at before the update. On a GPU that would stall the queue at every step, so the update is
made conditional on the device (the fused optimisers skip where ``found_inf`` is set, as loss scaling has them do) and
the host looks at the values one step later, when they have long arrived.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mask2former import distributed
from mask2former.errors import ConfigError, NonFiniteError

_AUXILIARY = re.compile(r"_\d+$")
TOTAL = "total_loss"


@dataclass(frozen=True)
class LossVector:
    """Names (L) and detached float32 values (L,) of the weighted terms of a step."""

    names: tuple[str, ...]
    values: torch.Tensor

    @classmethod
    def from_dict(cls, losses: Mapping[str, torch.Tensor]) -> tuple[LossVector, torch.Tensor]:
        """Return the detached vector, and the sum to be differentiated.

        Raises:
            ValueError: there are no losses.
        """
        if not losses:
            raise ValueError("in training the model must return at least one loss, it returned none")
        stacked = torch.stack([value.float() for value in losses.values()])
        return cls(tuple(losses), stacked.detach()), stacked.sum()

    def plus(self, other: LossVector | None) -> LossVector:
        """Return the sum with another part of the batch."""
        return self if other is None else LossVector(self.names, self.values + other.values)

    def scaled(self, weight: float) -> LossVector:
        """Return the share of a part of the batch."""
        return self if weight == 1.0 else LossVector(self.names, self.values * weight)

    def non_finite(self) -> list[str]:
        """Return ``name = value`` of the terms that are infinite or not a number; copies to the host."""
        return [
            f"{name} = {value}" for name, value in zip(self.names, self.values.tolist()) if not math.isfinite(value)
        ]


def is_auxiliary(name: str) -> bool:
    """Return whether a term belongs to an intermediate prediction layer (``loss_ce_3``), not the final one."""
    return _AUXILIARY.search(name) is not None


def with_total(names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Return terms by name, the final layer's first, then their total, then those of the intermediate layers."""
    terms = dict(zip(names, values))
    final = {name: value for name, value in terms.items() if not is_auxiliary(name)}
    return {**final, TOTAL: sum(values), **{name: value for name, value in terms.items() if name not in final}}


MAX_CONSECUTIVE_SKIPS = 50  # a run that does nothing but skip is a run that has diverged
POLICIES = ("stop", "skip")

logger = logging.getLogger(__name__)


@dataclass
class _Pending:
    """A step whose values are on their way to the host."""

    iteration: int
    names: tuple[str, ...]
    values: torch.Tensor  # (L + 2,): losses, gradient norm, whether any process was affected
    batch: Sequence[Mapping[str, Any]]
    arrived: torch.cuda.Event | None


class NonFiniteGuard:
    """Applies ``SOLVER.NONFINITE``: stop with an error, or skip the step (at most 50 in a row).

    ``deferred``: decide on the device and report one step later; needs a fused optimiser.
    ``tolerates_gradients``: infinite gradients are the business of the loss scaling.
    """

    def __init__(self, policy: str = "stop", *, deferred: bool = False, tolerates_gradients: bool = False) -> None:
        if policy not in POLICIES:
            raise ConfigError(f"SOLVER.NONFINITE must be stop or skip, found {policy!r}")
        self.policy = policy
        self.deferred = deferred
        self.tolerates_gradients = tolerates_gradients
        self.num_skipped = 0
        self._consecutive = 0
        self._pending: _Pending | None = None

    def admits_losses(
        self, losses: LossVector | None, batch: Sequence[Mapping[str, Any]], *, iteration: int, reason: str = ""
    ) -> bool:
        """Return whether to go on with the step, the same on all processes.

        ``losses`` is None if computing them failed.

        Raises:
            NonFiniteError: not finite, and the policy is to stop.
        """
        if self.deferred and losses is not None:
            return True
        if self.deferred and distributed.get_world_size() > 1:
            # The other processes are in their backward pass by now, and wait there for this one.
            raise NonFiniteError(f"iteration {iteration}: {reason}{describe_images(batch)}")
        bad = losses is None or not bool(torch.isfinite(losses.values).all())
        if distributed.get_world_size() > 1:
            bad_somewhere = distributed.any_process(torch.tensor([float(bad)])).item() > 0
        else:
            bad_somewhere = bad
        if bad_somewhere:
            terms = reason or ", ".join(losses.non_finite() if losses is not None and bad else [])
            self._act(iteration, terms, batch if bad else ())
        return not bad_somewhere

    def admits_gradients(self, norm: torch.Tensor, batch: Sequence[Mapping[str, Any]], *, iteration: int) -> bool:
        """Return whether to update the weights; the norm of averaged gradients is the same on all processes.

        Raises:
            NonFiniteError: not finite, and the policy is to stop.
        """
        if self.deferred or self.tolerates_gradients or bool(torch.isfinite(norm)):
            if not self.deferred:
                self._consecutive = 0
            return True
        self._act(iteration, f"the norm of the gradient = {norm.item()}", batch)
        return False

    def arm(
        self,
        optimizer: torch.optim.Optimizer,
        losses: LossVector,
        norm: torch.Tensor,
        batch: Sequence[Mapping[str, Any]],
        *,
        iteration: int,
    ) -> None:
        """Make the coming update conditional on the device, and start the copy of the values to the host."""
        finite = torch.isfinite(losses.values).all()
        if not self.tolerates_gradients:
            finite = finite & torch.isfinite(norm)
        affected = distributed.any_process((~finite).float().reshape(1))
        if not self.tolerates_gradients:  # else the loss scaling sets it
            optimizer.found_inf = affected[0]  # type: ignore[attr-defined]
        values = torch.cat([losses.values, norm.detach().float().reshape(1), affected])
        arrived = None
        if values.is_cuda:
            values = torch.empty(values.shape, pin_memory=True).copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._pending = _Pending(iteration, losses.names, values, batch, arrived)

    def settle(self) -> None:
        """Look at the step before; to be called before the next one and before weights are saved.

        Raises:
            NonFiniteError: it was not finite, and the policy is to stop.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        if pending.arrived is not None:
            pending.arrived.synchronize()
        if pending.values[-1] == 0:
            self._consecutive = 0
            return
        losses = LossVector(pending.names, pending.values[:-2])
        terms = losses.non_finite()
        if not terms and not torch.isfinite(pending.values[-2]):
            terms = [f"the norm of the gradient = {pending.values[-2].item()}"]
        self._act(pending.iteration, ", ".join(terms), pending.batch if terms else ())

    def _act(self, iteration: int, terms: str, batch: Sequence[Mapping[str, Any]]) -> None:
        self.num_skipped += 1
        self._consecutive += 1
        message = f"iteration {iteration}: {terms or 'not finite on another process'}{describe_images(batch)}"
        if self.policy == "skip" and self._consecutive < MAX_CONSECUTIVE_SKIPS:
            logger.warning("%s; the step is skipped (%d so far)", message, self.num_skipped)
            return
        if self.policy == "skip":
            message += f"; {self._consecutive} steps in a row were not finite"
        raise NonFiniteError(
            f"{message}. Training stops, this step did not change the weights, earlier checkpoints are intact; "
            "a lower SOLVER.BASE_LR or SOLVER.AMP.DTYPE bfloat16 may help, SOLVER.NONFINITE skip leaves such steps out"
        )


def describe_images(batch: Sequence[Mapping[str, Any]]) -> str:
    """`` in the images a.jpg, b.jpg``: files of a batch, or ids where there is no file."""
    names: list[str] = []
    for sample in batch:
        frames = sample.get("file_names") or [sample.get("file_name", f"image_id {sample.get('image_id', '?')}")]
        names.extend(str(frame) for frame in frames)
    return f" in the images {', '.join(names)}" if names else ""
