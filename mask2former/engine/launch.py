"""Starting processes, on one machine or several, through torch's elastic launcher (what torchrun uses)."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mask2former.errors import ConfigError, InputError, NonFiniteError

_INTERRUPTED = 130
_SECONDS_FOR_REPORTS = 2.0


class WorkerInputError(InputError):
    """What a worker process reported as the user's to mend."""


def launch(
    function: Callable[..., None],
    *args: Any,
    num_processes: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    verbose: bool = False,
) -> None:
    """Runs ``function(*args)`` in ``num_processes`` processes on each of ``num_machines`` machines.

    The function must be importable by name. The processes share the machine's cores between them.

    Raises:
        ConfigError: impossible numbers, or several machines without an address.
        WorkerInputError: a process found an input wrong, or a loss not finite.
        RuntimeError: a process failed otherwise; its traceback is on stderr.
    """
    config = _build_config(num_processes, num_machines, machine_rank, dist_url)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_per_process(num_processes)))
    if not verbose:
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="mask2former-") as messages:
        try:
            elastic_launch(config, _run_worker)(function, args, messages, verbose)
        except ChildFailedError as error:
            found = sorted({path.read_text(encoding="utf-8") for path in Path(messages).glob("*.txt")})
            if found:
                raise WorkerInputError("\n".join(found)) from None
            if killed := _describe_killed(error):
                raise WorkerInputError(killed) from None
            raise RuntimeError(f"a worker process failed: {_describe(error)}") from None
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise


def check_num_gpus(num_processes: int, device: str) -> None:
    """Raises ConfigError where more processes are asked for than there are GPUs; without any, they run on the CPU."""
    available = torch.cuda.device_count() if device.startswith("cuda") else 0
    if 0 < available < num_processes:
        raise ConfigError(f"--num-gpus {num_processes}: this machine has {available}")


def threads_per_process(num_processes: int) -> int:
    """An equal share of the cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores // num_processes, 1)


def _build_config(num_processes: int, num_machines: int, machine_rank: int, dist_url: str) -> LaunchConfig:
    if num_processes < 1 or num_machines < 1 or not 0 <= machine_rank < num_machines:
        raise ConfigError(
            f"--num-gpus and --num-machines must be at least 1 and --machine-rank below --num-machines, found "
            f"{num_processes}, {num_machines} and {machine_rank}"
        )
    if num_machines > 1 and dist_url == "auto":
        raise ConfigError("--num-machines above 1 needs --dist-url tcp://HOST:PORT, an address on machine 0")
    address = dist_url.removeprefix("tcp://")
    on_one = dist_url == "auto"
    return LaunchConfig(
        min_nodes=num_machines,
        max_nodes=num_machines,
        nproc_per_node=num_processes,
        run_id=uuid.uuid4().hex if on_one else "mask2former",
        rdzv_backend="c10d" if on_one else "static",
        rdzv_endpoint="localhost:0" if on_one else address,
        rdzv_configs={} if on_one else {"rank": machine_rank, "timeout": 900},
        max_restarts=0,
        monitor_interval=0.2,
        local_addr="localhost" if on_one else None,
    )


def _run_worker(function: Callable[..., None], args: tuple[Any, ...], messages: str, verbose: bool) -> None:
    """In the worker: errors that are the user's to mend travel to the launcher as a message, others are printed."""
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    signal.signal(signal.SIGINT, _interrupt_once)
    try:
        function(*args)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except Exception as error:
        is_expected = isinstance(error, (InputError, NonFiniteError))
        if is_expected:
            Path(messages, f"{os.environ.get('RANK', '0')}.txt").write_text(str(error), encoding="utf-8")
        if verbose or not (is_expected or _another_reports(messages)):
            traceback.print_exc()
        sys.exit(1)


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    """Ctrl-C comes from the terminal and from the launcher; the second would interrupt what the first set off."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _another_reports(messages: str) -> bool:
    """Whether another process says within a moment what is wrong: here only the connection to it failed then."""
    deadline = time.monotonic() + (_SECONDS_FOR_REPORTS if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0)
    while not any(Path(messages).glob("*.txt")):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True


def _describe_killed(error: ChildFailedError) -> str:
    """What a signal ended from outside; empty where a process ended by itself."""
    rank, failure = error.get_first_failure()
    if failure.exitcode >= 0:
        return ""
    name = signal.Signals(-failure.exitcode).name if -failure.exitcode in set(signal.Signals) else -failure.exitcode
    return f"process {failure.pid} (rank {rank}) was killed by {name}; the others were ended. Memory may be short"


def _describe(error: ChildFailedError) -> str:
    rank, failure = error.get_first_failure()
    return f"rank {rank}, exit code {failure.exitcode}"
