"""What a command does to its whole process, before torch is imported."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEPT_BYTES, _PIECE_BYTES = 1 << 30, 1 << 28
_OLD_PIECE_BYTES = 1 << 25  # the most that glibc takes before 2.35


def tune_process() -> None:
    """What a command does to its whole process; must run before torch is imported, and yields to the user's choice."""
    _limit_spinning()
    _keep_freed_memory()


def _limit_spinning() -> None:
    """Let idle threads of GNU OpenMP sleep early.

    By default they spin for milliseconds. With as many threads as cores, one other busy process (a data worker is
    enough) then holds up every parallel region: measured on two cores, 5.6 s a step instead of 0.4 s. What waking
    costs on an idle machine was within the noise there; OMP_WAIT_POLICY or GOMP_SPINCOUNT overrule this.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _keep_freed_memory() -> None:
    """Let glibc keep up to 1 GiB of freed memory for the next use.

    By itself it hands pieces of more than 32 MiB to the system at once, which clears each page before it gives it out
    again: measured on two cores, 12 % of the time of an image and 3 to 15 % of a training step. Pieces of more than
    256 MiB (32 MiB in an old glibc) still go. MALLOC_* or GLIBC_TUNABLES in the environment, and preloaded libraries,
    overrule this.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ) or "LD_PRELOAD" in os.environ:
        return
    try:
        set_option = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # no glibc
        return
    _set_thresholds(set_option)


def _set_thresholds(set_option: Callable[[int, int], int]) -> None:
    """By glibc's mallopt, which returns 0 for a value that it refuses."""
    # Once one of the two is set, glibc no longer raises the other by itself: with that of trimming alone, each piece of
    # more than 128 KiB would come from the system anew.
    if any(set_option(_M_MMAP_THRESHOLD, size) for size in (_PIECE_BYTES, _OLD_PIECE_BYTES)):
        set_option(_M_TRIM_THRESHOLD, _KEPT_BYTES)
