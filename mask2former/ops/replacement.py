"""Operators that a block of code computes otherwise: for graphs that a runtime without them is to run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from torch import Tensor

Forward = Callable[..., Tensor]


class Replaceable:
    """An operator by what it is computed with: itself, or in the block of ``replaced`` something else.

    No context variable, which torch.compile cannot read.
    """

    def __init__(self, operator: Forward) -> None:
        self._stack = [operator]

    def __call__(self, *args: object) -> Tensor:
        return self._stack[-1](*args)

    @contextlib.contextmanager
    def replaced(self, forward: Forward | None) -> Iterator[None]:
        """Compute by ``forward``, which takes the operator's arguments, in the block; None leaves the operator."""
        if forward is None:
            yield
            return
        self._stack.append(forward)
        try:
            yield
        finally:
            self._stack.pop()
