"""A process pool that neither hangs on threads of this process nor outlives it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from types import FrameType

import cv2

from mask2former.errors import DatasetError

_SECONDS_TO_TIDY = 0.5


@contextmanager
def process_pool(num_workers: int, preload: Sequence[str] = ()) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool whose processes import the modules ``preload`` once; on exit, tasks not yet begun are cancelled.

    Raises:
        DatasetError: a process was killed.
    """
    # Not forked from this process: the threads of OpenCV and torch do not survive that, and waiting for them hangs.
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        context.set_forkserver_preload(list(preload))
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise DatasetError("a process was killed; memory may be short: try fewer --num-workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, _end_worker)
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A worker that waits for work would otherwise outlive a killed parent for ever.
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def _end_worker(number: int, frame: FrameType | None) -> None:
    """Ends on Ctrl-C: the work at hand removes its temporary files, what is queued does not begin."""
    threading.Timer(_SECONDS_TO_TIDY, os._exit, [1]).start()  # the pool takes the exit below for a result
    sys.exit(1)
