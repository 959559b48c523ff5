"""Read files in threads shortly before they are needed."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")

_MAX_THREADS = 4


class ReadAhead(Generic[T]):
    """The items of a sequence, in order; the next ones are read in threads meanwhile.

    ``read`` is called with a position, in threads, and should spend its time outside of Python (decoding). What it
    raises is raised when that item is requested. ``num_ahead`` items are kept in memory.
    """

    def __init__(self, read: Callable[[int], T], length: int, *, num_ahead: int = 2 * _MAX_THREADS) -> None:
        self._read, self._length, self._num_ahead = read, length, num_ahead
        self._threads = ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="read-ahead")
        self._pending: dict[int, Future[T]] = {}
        self._next: int | None = None  # the position that would be in order

    def __getitem__(self, position: int) -> T:
        if self._next not in (None, position):
            for future in self._pending.values():
                future.cancel()
            self._pending = {}
        else:
            for ahead in range(position, min(position + 1 + self._num_ahead, self._length)):
                if ahead not in self._pending:
                    self._pending[ahead] = self._threads.submit(self._read, ahead)
        self._next = position + 1
        future_item = self._pending.pop(position, None)
        return self._read(position) if future_item is None else future_item.result()
