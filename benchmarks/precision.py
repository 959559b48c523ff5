"""Evaluates weights in float32 and in bfloat16 and compares their panoptic quality.

    python benchmarks/precision.py [--limit 0.3] CONFIG WEIGHTS [KEY VALUE ...]

Both by the framework's own evaluation on the DATASETS.TEST of the config; `make quickstart` leaves weights for
configs/shapes/panoptic-segmentation/maskformer2_R18_quickstart.yaml. Quality is in percent.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from benchmarks.comparison import require_at_most
from benchmarks.harness import ROOT, record
from mask2former import get_cfg
from mask2former.engine import evaluate_only

PRECISIONS = ("float32", "bfloat16")
METRICS = ("PQ", "PQ_th", "PQ_st")
TASK = "panoptic_seg"


def evaluate_in(precision: str, args: argparse.Namespace) -> dict[str, float]:
    """METRICS of the weights; only panoptic results are made."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = get_cfg()
        cfg.merge_from_file(args.config)
        tasks = {"PANOPTIC": True, "SEMANTIC": False, "INSTANCE": False}
        cfg.merge_from_list([v for task, on in tasks.items() for v in (f"MODEL.MASK_FORMER.TEST.{task}_ON", on)])
        cfg.merge_from_list([*args.opts, "MODEL.WEIGHTS", args.weights, "MODEL.PRECISION", precision])
        cfg.merge_from_list(["OUTPUT_DIR", folder, "TEST.EXPECTED_RESULTS", [], "TEST.EXPECTED_ZOO", ""])
        quality = evaluate_only(cfg)[TASK]
    return {name: float(quality[name]) for name in METRICS}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Quality in both precisions, and what bfloat16 adds to it.

    Raises:
        DifferenceError: PQ differs by more than the limit, or there is none.
    """
    qualities = {precision: evaluate_in(precision, args) for precision in PRECISIONS}
    gains = {name: qualities["bfloat16"][name] - qualities["float32"][name] for name in METRICS}
    print_results({**qualities, "difference": gains})
    require_at_most({"PQ": abs(gains["PQ"])}, {"PQ": args.limit})
    return {**qualities, "difference": gains, "limit of PQ": args.limit}


def print_results(results: dict[str, dict[str, float]]) -> None:
    """A line for each precision, and the difference."""
    for name, quality in results.items():
        values = ", ".join(f"{metric} {value:7.3f}" for metric, value in quality.items())
        print(f"  {name:10s} {values}")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("weights")
    parser.add_argument("--limit", type=float, default=0.3, help="how far PQ may move, in percent")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-record", action="store_true", help="print only, keep no line in benchmarks/results")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="further config values")
    return parser.parse_args(arguments)


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    results = measure(args)
    if not args.no_record:
        config = Path(args.config).resolve()
        published = ROOT / "configs"
        named = config.relative_to(published).as_posix() if config.is_relative_to(published) else ""
        record("precision", results, labels=[config.stem], config=named)


if __name__ == "__main__":
    main()
