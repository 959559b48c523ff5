"""Fuzzes the readers of files: `python -m tests.faults.fuzz [TARGET …] [--time SECONDS] [--runs N]`; needs atheris.

What has been found to lead somewhere new is kept in the output folder, and begun with the next time.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from tests.faults.fuzz.targets import TARGETS

_RUNS = re.compile(r"stat::number_of_executed_units: (\d+)")
_COVERED = re.compile(r" cov: (\d+) ")
_FAULT = re.compile(r"^FAULT (.*)$", re.MULTILINE)


def main() -> int:
    """Prints a line for each target, and its faults; exit status 1 where there are any."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--time", type=int, default=60, metavar="SECONDS", help="for each target (%(default)s)")
    parser.add_argument("--runs", type=int, metavar="N", help="inputs for each target, however long they take")
    parser.add_argument("--seed", type=int, default=0, help="0: another one each time")
    parser.add_argument("--output", type=Path, default=Path("output/fuzz"), metavar="DIR")
    args = parser.parse_args()
    if unknown := set(args.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    limit = f"-runs={args.runs}" if args.runs else f"-max_total_time={args.time}"
    is_right = [_fuzz(name, args.output / name, [limit, f"-seed={args.seed}"]) for name in args.targets or TARGETS]
    return 0 if all(is_right) else 1


def _fuzz(name: str, folder: Path, options: list[str]) -> bool:
    for fault in folder.glob("fault-*"):
        fault.unlink()
    command = [sys.executable, "-m", "tests.faults.fuzz.worker", name, str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    faults = _FAULT.findall(done.stdout)
    if done.returncode:
        tail = [line for line in done.stderr.splitlines() if line.strip()][-25:]
        faults.append(f"the process ended with {done.returncode}, its input is in {folder}:\n" + "\n".join(tail))
    runs, covered = _RUNS.findall(done.stderr), _COVERED.findall(done.stderr)
    print(
        f"{name:14} {runs[-1] if runs else '?':>9} inputs, {covered[-1] if covered else '?':>5} places reached, ",
        end="",
    )
    print(f"{len(faults)} kinds of faults" if faults else "no fault", flush=True)
    for fault in faults:
        print(f"  {fault}")
    return not faults


if __name__ == "__main__":
    sys.exit(main())
