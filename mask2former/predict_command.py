"""Predicts image files: writes an overlay per image and task, and on request the masks themselves."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mask2former.config import get_cfg
from mask2former.errors import InputError
from mask2former.image_input import to_rgb_array
from mask2former.predict_inputs import IMAGE_SUFFIXES, VIDEO_SUFFIXES, NamedFile, find_files, prepare_folder
from mask2former.predictor import TASKS, Predictor
from mask2former.structures import Metadata
from mask2former.visualization import (
    draw_instances,
    draw_panoptic,
    draw_semantic,
    save_instances,
    save_panoptic,
    save_semantic,
    write_png,
)

# Every query yields an instance, so a picture of all of them would show mostly wrong ones.
DEFAULT_INSTANCE_THRESHOLD = 0.5
MAX_FAILURES_NAMED = 20


def add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config of the model")
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        metavar="PATH",
        help="image files, folders (with those below), or quoted patterns",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="directory for the pictures; made if missing")
    parser.add_argument(
        "--task", nargs="+", choices=TASKS, help="what to predict; by default what the config's TEST section turns on"
    )
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        metavar="T",
        help="0..1, hide what scores less (default: panoptic as the config says, instances "
        f"{DEFAULT_INSTANCE_THRESHOLD})",
    )
    parser.add_argument("--save-masks", action="store_true", help="also write the masks as PNG and json")
    parser.add_argument(
        "--opts", nargs="*", default=[], metavar="KEY VALUE", help="config overrides, such as MODEL.WEIGHTS model.pth"
    )
    parser.add_argument("--verbose", action="store_true", help="show tracebacks and more of the log")


def run_predict(args: argparse.Namespace) -> None:
    """Predict all images of the command line.

    An image that cannot be read is reported and the others are done all the same. The results of a folder mirror it.
    Raises InputError before the model is built where an input, option or the output is wrong, and at the end where
    images could not be read.
    """
    if args.verbose:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    images = find_images(args.input, output=Path(args.output).expanduser())
    output = prepare_folder(args.output)
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    predictor = Predictor(cfg, task=args.task, score_threshold=args.confidence_threshold)
    threshold = DEFAULT_INSTANCE_THRESHOLD if args.confidence_threshold is None else args.confidence_threshold
    failures, num_written = [], 0
    for file in tqdm(images, desc="predict", unit="image", disable=None):
        try:
            image = to_rgb_array(file.path)
        except InputError as error:
            failures.append(str(error))
            continue
        stem = output / file.name
        stem.parent.mkdir(parents=True, exist_ok=True)
        results = predictor(image)
        num_written += _write_pictures(stem, image, results, predictor.metadata, threshold=threshold)
        if args.save_masks:
            num_written += _write_masks(stem, file.path, results, predictor.metadata, threshold=threshold)
    print(f"{num_written} files of {len(images) - len(failures)} images in {output}")
    if failures:
        raise InputError(_describe_failures(failures, num_images=len(images)))


def find_images(inputs: Sequence[str], *, output: Path | None = None) -> list[NamedFile]:
    """Image files as `find_files` finds them; raises InputError also where a video is named instead."""
    images = find_files(inputs, IMAGE_SUFFIXES, kind="image", output=output)
    for image in images:
        if image.path.suffix.lower() in VIDEO_SUFFIXES:
            raise InputError(f"{image.path}: a video, not an image; --video-input takes it")
    return images


def _describe_failures(failures: Sequence[str], *, num_images: int) -> str:
    more = len(failures) - MAX_FAILURES_NAMED
    named = list(failures[:MAX_FAILURES_NAMED]) + ([f"and {more} more"] if more > 0 else [])
    return f"{len(failures)} of {num_images} images could not be read: " + "; ".join(named)


def _write_pictures(
    stem: Path, image: np.ndarray, results: dict[str, Any], metadata: Metadata, *, threshold: float
) -> int:
    pictures = {}
    if "panoptic_seg" in results:
        pictures["panoptic"] = draw_panoptic(image, results["panoptic_seg"], metadata)
    if "instances" in results:
        pictures["instance"] = draw_instances(image, results["instances"], metadata, score_threshold=threshold)
    if "sem_seg" in results:
        pictures["semantic"] = draw_semantic(image, results["sem_seg"], metadata)
    for task, picture in pictures.items():
        write_png(Path(f"{stem}_{task}.png"), picture)
    return len(pictures)


def _write_masks(stem: Path, image_path: Path, results: dict[str, Any], metadata: Metadata, *, threshold: float) -> int:
    written = []
    if "panoptic_seg" in results:
        written += save_panoptic(stem, results["panoptic_seg"], metadata=metadata, image_name=image_path.name)
    if "instances" in results:
        written += save_instances(
            stem, results["instances"], metadata=metadata, image_name=image_path.name, score_threshold=threshold
        )
    if "sem_seg" in results:
        written += save_semantic(stem, results["sem_seg"])
    return len(written)
