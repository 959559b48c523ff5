"""What a checkpoint holds once it is read, bounded in depth, in entries and in the memory of its tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from mask2former.checkpoint.pickle_machine import Foreign
from mask2former.errors import CheckpointError

_MAX_DEPTH = 64
_MAX_ENTRIES = 10_000_000
_MAX_GROWTH = 16  # shared tensors count at each place that they have: of tied weights that is twice
_ALWAYS_ALLOWED_BYTES = 1 << 26


class DamagedError(CheckpointError):
    """The file is not as it was written."""


def check_content(content: Any, *, source: str, size: int) -> None:
    """Refuse what a file of ``size`` bytes cannot honestly hold.

    A few bytes can say that a list holds itself, or ten copies of a list that holds ten of another, and so on; whoever
    walks through it never ends.

    Raises:
        CheckpointError: the content is too deep, too large, or holds something that was never completed.
    """
    try:
        entries, num_bytes = _measure(content, {}, _MAX_DEPTH)
    except ValueError as error:
        raise CheckpointError(f"{source}: refused: {error}") from error
    if entries > _MAX_ENTRIES:
        raise CheckpointError(f"{source}: refused: more than {_MAX_ENTRIES} entries in a file of {size} bytes")
    if num_bytes > _MAX_GROWTH * size + _ALWAYS_ALLOWED_BYTES:
        raise CheckpointError(f"{source}: refused: its tensors would take {num_bytes} bytes, and the file has {size}")


def _measure(value: Any, known: dict[int, tuple[int, int]], depth: int) -> tuple[int, int]:
    """Return entries and bytes, those of shared containers at each place; ``known`` holds containers that are done."""
    if isinstance(value, torch.Tensor):
        return 1, value.numel() * value.element_size()
    if isinstance(value, np.ndarray):
        return 1, value.nbytes
    if isinstance(value, Foreign):
        raise ValueError(f"it holds {value.name} as a value")
    if not isinstance(value, dict | list | tuple | set | frozenset):
        return 1, 0
    if id(value) in known:
        return known[id(value)]
    if not depth:
        raise ValueError(f"its containers lie in each other more than {_MAX_DEPTH} deep")
    parts: Iterable[Any] = value.values() if isinstance(value, dict) else value
    measured = [_measure(part, known, depth - 1) for part in parts]
    known[id(value)] = 1 + sum(entries for entries, _ in measured), sum(num_bytes for _, num_bytes in measured)
    return known[id(value)]
