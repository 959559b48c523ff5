"""What the benchmarks share: taking turns, medians, ratios, and a dated line in `benchmarks/results/`.

Functions to compare take turns in one process, so that a busy machine slows all alike; the first turn warms up.
"""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS_DIR = Path(__file__).with_name("results")
_PACKAGES = ("torch", "transformers", "numpy", "pycocotools")


def now() -> float:
    """Seconds on a clock that waits for the device's work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(function: Callable[[], Any]) -> float:
    """How long one call takes."""
    start = now()
    function()
    return now() - start


def core_seconds_of(function: Callable[[], Any]) -> float:
    """How long all threads of this process together kept a core busy in one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def take_turns(
    functions: Mapping[str, Callable[[], Any]],
    *,
    runs: int,
    clock: Callable[[Callable[[], Any]], float] = seconds_of,
) -> dict[str, float]:
    """Median seconds of each function by `clock` over `runs` rounds, after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(runs + 1):
        for name, function in functions.items():
            print(f"\r  round {turn} of {runs}: {name:40s}", end="", file=sys.stderr, flush=True)
            times[name].append(clock(function))
    print("\r" + " " * 60 + "\r", end="", file=sys.stderr, flush=True)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def describe_machine() -> dict[str, Any]:
    """Processor or GPU, cores in use, and their instruction set as torch names it."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "processor": _processor_name(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": device,
    }


def name_results(benchmark: str, results: Mapping[str, Any], *, labels: Sequence[str] = ()) -> str:
    """Script, `labels`, then `dtype` and `device` of the results where they have them: what must not replace another.

    On a CPU the device is left out; a GPU is named by its kind, as in `training_r50_bfloat16_cuda`.
    """
    device = str(results.get("device", "cpu")).partition(":")[0]
    parts = (benchmark, *labels, str(results.get("dtype", "")), "" if device == "cpu" else device)
    return "_".join(part for part in parts if part).lower()


def record(benchmark: str, results: Mapping[str, Any], *, labels: Sequence[str] = (), config: str = "") -> None:
    """Append results as one JSON line with date, machine, versions and commit to a file in `results/`.

    The file is named by `name_results`: of each file the last line counts. `config` is a file below `configs/`.
    """
    name = name_results(benchmark, results, labels=labels)
    line = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "benchmark": name,
        "script": f"benchmarks/{benchmark}.py",
        "machine": describe_machine(),
        "versions": {"python": platform.python_version(), **_package_versions()},
        "commit": _commit(),
        **({"config": config} if config else {}),
        "results": dict(results),
    }
    RESULTS_DIR.mkdir(exist_ok=True)
    with open(RESULTS_DIR / f"{name}.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def print_ratio(label: str, *, ours: float, theirs: float, unit: str = "s") -> None:
    """One line: both figures, and how many times ours goes into theirs."""
    print(f"  {label:44s} ours {ours:9.4g} {unit}   theirs {theirs:9.4g} {unit}   {theirs / ours:6.2f} x")


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _package_versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _commit() -> str:
    """The commit measured, with "+" where the tree has further changes."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", "mask2former", "benchmarks/*.py"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
