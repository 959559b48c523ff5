"""Save memory: recompute layers in the backward pass, and cast inputs once where autocast would copy them twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")


def run_checkpointed(step: Callable[..., Result], *args: Any, enabled: bool, **kwargs: Any) -> Result:
    """Return ``step`` of the arguments; with ``enabled``, and if gradients are wanted, store only the arguments."""
    if enabled and torch.is_grad_enabled():
        return checkpoint(step, *args, use_reentrant=False, **kwargs)
    return step(*args, **kwargs)


def checkpoint_activations(module: nn.Module, *, enabled: bool = True) -> int:
    """Make all parts of ``module`` that support it recompute their layers; return how many there are."""
    parts = [part for part in module.modules() if hasattr(part, "use_checkpoint")]
    for part in parts:
        part.use_checkpoint = enabled  # type: ignore[assignment]
    return len(parts)


def cast_once(x: Tensor) -> Tensor:
    """Return x in the dtype to which autocast casts the input of linear layers: one copy for several layers.

    Not if gradients are wanted: those of the several layers would be summed in that dtype.
    """
    kind = x.device.type
    if torch.is_grad_enabled() or x.dtype != torch.float32 or x.is_meta or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))
