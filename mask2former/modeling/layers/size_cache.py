"""A small cache for tensors that depend on sizes alone, such as position encodings and shift masks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor


class SizeCache:
    """Keeps the `capacity` tensors used last. Copies and pickles of it are empty; tracing passes it by."""

    def __init__(self, capacity: int = 8) -> None:
        self.capacity = capacity
        self._entries: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """The tensor under `key`, from `compute` at the first call; it is a constant without gradient."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return compute()  # a cached tensor would become a constant of the graph, or break it
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        # A tensor made in inference mode could not be used in training afterwards.
        with torch.inference_mode(False), torch.no_grad():
            value = compute()
        self._entries[key] = value
        if len(self._entries) > self.capacity:
            self._entries.popitem(last=False)
        return value

    def __reduce__(self) -> tuple[type[SizeCache], tuple[int]]:
        return SizeCache, (self.capacity,)
