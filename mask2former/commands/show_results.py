"""Prints what a training run reached, and where its files lie."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mask2former.commands.arguments import CommandParser, print_report
from mask2former.errors import InputError

DESCRIPTION = "Print what a training run reached, and where its files lie."
# Metrics worth a line of their own, by their names in metrics.json.
METRICS = (
    ("panoptic_seg/PQ", "panoptic quality (PQ)"),
    ("panoptic_seg/PQ_th", "  of things"),
    ("panoptic_seg/PQ_st", "  of stuff"),
    ("segm/AP", "instance mask AP"),
    ("segm/AP50", "  at IoU 0.5"),
    ("segm/AR10", "  recall of ten a video"),
    ("sem_seg/mIoU", "mean IoU"),
)
FILES = (
    ("model_final.pth", "weights"),
    ("config.yaml", "configuration"),
    ("metrics.json", "losses and results, one json object a line"),
    ("log.txt", "log"),
    ("pictures", "predictions on images not seen in training"),
    ("videos", "predictions on videos not seen in training"),
)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the run's OUTPUT_DIR")
    parser.add_output_option("file for the lines too")


def run(args: argparse.Namespace) -> None:
    """Print the results.

    Raises:
        InputError: the run has no readable metrics.json.
    """
    results = read_last_results(args.folder / "metrics.json")
    lines = ["", "Results"]
    lines += [f"  {title:24s} {results[name]:6.2f}" for name, title in METRICS if name in results]
    lines += ["", "Files"]
    for name, title in FILES:
        path = args.folder / name
        if path.exists():
            lines.append(f"  {path}{'/' if path.is_dir() else ''}  {title}")
    print_report("\n".join(lines), args.output)


def read_last_results(path: Path) -> dict[str, float]:
    """Return the last value of every metric in a metrics.json.

    Raises:
        InputError: the file cannot be read, or a line is no json object.
    """
    results: dict[str, float] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            results.update(json.loads(line))
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"{path}: {error}") from error
    return results
