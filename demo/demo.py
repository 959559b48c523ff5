#!/usr/bin/env python
"""Predicts images and writes overlays.

python demo/demo.py --config-file F --input FILES|DIR|GLOB --output DIR [--opts MODEL.WEIGHTS model.pth]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from mask2former.cli import run_cli
from mask2former.predict_command import add_predict_arguments, run_predict


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Predict images and write panoptic, instance and semantic overlays.")
    add_predict_arguments(parser)
    args = parser.parse_args(argv)
    return run_cli(lambda: run_predict(args), verbose=args.verbose)


if __name__ == "__main__":
    sys.exit(main())
