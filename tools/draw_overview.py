#!/usr/bin/env python
"""Draws one picture of what a model sees: images above, panoptic, instance and semantic results below each.

python tools/draw_overview.py --config-file F --weights W --input IMAGE … --output overview.png [--size 256]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

import numpy as np
from PIL import Image

from mask2former import Predictor
from mask2former.commands.cli import run_cli
from mask2former.files.images import read_image
from mask2former.inference.predictor import TASKS
from mask2former.visualization import draw_instances, draw_panoptic, draw_semantic

GAP = 4  # pixels between pictures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="config of the model")
    parser.add_argument("--weights", required=True, help="its weights")
    parser.add_argument("--input", nargs="+", required=True, help="images, one a column")
    parser.add_argument("--output", type=Path, required=True, help="picture to write")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["panoptic"], help="one row each (panoptic)")
    parser.add_argument("--size", type=int, default=256, help="side of each picture in pixels (%(default)s)")
    parser.add_argument("--verbose", action="store_true", help="show tracebacks")
    args = parser.parse_args()
    return run_cli(lambda: draw(args), verbose=args.verbose)


def draw(args: argparse.Namespace) -> None:
    predictor = Predictor(args.config_file, args.weights, task=args.tasks)
    columns = [draw_column(predictor, path, tasks=args.tasks, size=args.size) for path in args.input]
    gap = np.full((columns[0].shape[0], GAP, 3), 255, dtype=np.uint8)
    picture = np.concatenate([part for column in columns for part in (gap, column)][1:], axis=1)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).quantize(256, dither=Image.Dither.NONE).save(args.output, optimize=True)


def draw_column(predictor: Predictor, path: str, *, tasks: list[str], size: int) -> np.ndarray:
    """The image and, below it, one overlay a task: (h, size, 3)."""
    image = read_image(path)
    results = predictor(path)
    overlays = {
        "panoptic": lambda: draw_panoptic(image, results["panoptic_seg"], predictor.metadata),
        "instance": lambda: draw_instances(image, results["instances"], predictor.metadata, score_threshold=0.5),
        "semantic": lambda: draw_semantic(image, results["sem_seg"], predictor.metadata),
    }
    pictures = [image, *(overlays[task]() for task in tasks)]
    squares = [np.asarray(Image.fromarray(each).resize((size, size), Image.Resampling.LANCZOS)) for each in pictures]
    gap = np.full((GAP, size, 3), 255, dtype=np.uint8)
    return np.concatenate([part for square in squares for part in (gap, square)][1:], axis=0)


if __name__ == "__main__":
    sys.exit(main())
