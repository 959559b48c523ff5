"""Records what models of the embedded data set reach: PQ, AP and mIoU of finished runs, with their iterations and time.

    python benchmarks/shapes_models.py NAME=RUN_FOLDER [NAME=RUN_FOLDER …]

A run is that of a recipe below configs/shapes; its figures are those of its last evaluation.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from benchmarks.harness import record

METRICS = {"PQ": "panoptic_seg/PQ", "AP": "segm/AP", "mIoU": "sem_seg/mIoU"}


def read_run(folder: Path) -> dict[str, Any]:
    """Return the metrics, the iterations, and the median seconds of one."""
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text(encoding="utf-8").splitlines()]
    last = next((line for line in reversed(lines) if METRICS["PQ"] in line), None)
    if last is None:
        raise SystemExit(f"error: {folder}/metrics.json: no evaluation with {METRICS['PQ']}: the run is not finished")
    steps = [line["time"] for line in lines if "time" in line]
    found: dict[str, Any] = {name: round(last[key], 2) for name, key in METRICS.items()}
    return {**found, "iterations": int(last["iteration"]) + 1, "seconds of one": round(statistics.median(steps), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN_FOLDER")
    options = parser.parse_args()
    runs = {name: read_run(Path(folder)) for name, _, folder in (run.partition("=") for run in options.runs)}
    print(f"{'':24s} {'PQ':>6s} {'AP':>6s} {'mIoU':>6s} {'iterations':>11s} {'s of one':>9s}")
    for name, run in runs.items():
        figures = " ".join(f"{run[metric]:6.2f}" for metric in METRICS)
        print(f"{name:24s} {figures} {run['iterations']:11d} {run['seconds of one']:9.3f}")
    record("shapes_models", runs)


if __name__ == "__main__":
    main()
