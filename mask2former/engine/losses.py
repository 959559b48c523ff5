"""The losses of a step as one vector, so that nothing is copied to the host term by term."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

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
