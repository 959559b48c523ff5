#!/usr/bin/env python
"""Prints what a training run reached, and where its files lie: show_results.py OUTPUT_DIR."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output_dir", type=Path)
    output_dir = parser.parse_args().output_dir
    try:
        results = read_last_results(output_dir / "metrics.json")
    except (OSError, ValueError) as error:
        print(f"error: {output_dir / 'metrics.json'}: {error}", file=sys.stderr)
        return 1
    print("\nResults")
    for name, title in METRICS:
        if name in results:
            print(f"  {title:24s} {results[name]:6.2f}")
    print("\nFiles")
    for name, title in FILES:
        path = output_dir / name
        if path.exists():
            print(f"  {path}{'/' if path.is_dir() else ''}  {title}")
    return 0


def read_last_results(path: Path) -> dict[str, float]:
    """The last value of every metric in a metrics.json."""
    results: dict[str, float] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        results.update(json.loads(line))
    return results


if __name__ == "__main__":
    sys.exit(main())
