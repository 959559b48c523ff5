"""Predicts images, videos and cameras: writes an overlay per image and task, and on request the masks themselves."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from mask2former.commands.predict_video import VideoOptions, find_videos, predict_camera, predict_videos
from mask2former.config import get_cfg
from mask2former.errors import InputError
from mask2former.files.finding import IMAGE_SUFFIXES, VIDEO_SUFFIXES, NamedFile, find_files, prepare_folder
from mask2former.files.images import to_rgb_array
from mask2former.files.pictures import write_picture
from mask2former.inference.outputs import draw_results, save_results
from mask2former.inference.predictor import TASKS, Predictor
from mask2former.modeling.inference_precision import PRECISIONS

# Every query yields an instance, so a picture of all of them would show mostly wrong ones.
DEFAULT_INSTANCE_THRESHOLD = 0.5
MAX_FAILURES_NAMED = 20


def add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config of the model")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input",
        nargs="+",
        metavar="PATH",
        help="image files, folders (with those below), quoted patterns, or http(s) addresses",
    )
    source.add_argument("--video-input", nargs="+", metavar="PATH", help="the same with videos")
    source.add_argument(
        "--webcam", nargs="?", type=int, const=0, metavar="N", help="a camera, by default the first (0); q or Esc ends"
    )
    parser.add_argument(
        "--output",
        metavar="PATH",
        help="directory for the results, made if missing; for one video or a camera also the name of a video file; "
        "without it, a camera is shown in a window",
    )
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
    parser.add_argument(
        "--precision", choices=PRECISIONS, help="what to compute in, by default MODEL.PRECISION; float16 needs a GPU"
    )
    parser.add_argument("--save-masks", action="store_true", help="also write the masks as PNG and json")
    parser.add_argument("--max-frames", type=int, metavar="N", help="of a video or camera: stop after so many")
    parser.add_argument(
        "--opts", nargs="*", default=[], metavar="KEY VALUE", help="config overrides, such as MODEL.WEIGHTS model.pth"
    )
    parser.add_argument("--verbose", action="store_true", help="show tracebacks and more of the log")


def run_predict(args: argparse.Namespace) -> None:
    """Predict all images, videos or the camera of the command line.

    What cannot be read is reported and the others are done all the same. The results of a folder mirror it.
    Raises InputError before the model is built where an input, option or the output is wrong, and at the end where
    files could not be read.
    """
    if args.verbose:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    threshold = DEFAULT_INSTANCE_THRESHOLD if args.confidence_threshold is None else args.confidence_threshold
    if args.output is None and args.webcam is None:
        raise InputError("--output is needed: a directory for the results")
    if args.input:
        images = find_images(args.input, output=Path(args.output).expanduser())
        output = prepare_folder(args.output)
        _predict_images(_build_predictor(args), images, output=output, threshold=threshold, save_masks=args.save_masks)
        return
    if args.max_frames is not None and args.max_frames < 1:
        raise InputError(f"--max-frames: expected at least 1, found {args.max_frames}")
    options = VideoOptions(threshold, save_masks=args.save_masks, max_frames=args.max_frames)
    if args.webcam is not None:
        predict_camera(_build_predictor(args), args.webcam, output=args.output, options=options)
        return
    videos = find_videos(args.video_input, output=args.output)
    predict_videos(_build_predictor(args), videos, output=args.output, options=options)


def _build_predictor(args: argparse.Namespace) -> Predictor:
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.TEST.SEMANTIC_LABELS = True  # all that is drawn and saved
    return Predictor(cfg, task=args.task, score_threshold=args.confidence_threshold, precision=args.precision)


def _predict_images(
    predictor: Predictor, images: Sequence[NamedFile], *, output: Path, threshold: float, save_masks: bool
) -> None:
    failures, num_written = [], 0
    for file in tqdm(images, desc="predict", unit="image", disable=None):
        try:
            image = to_rgb_array(file.source, bits=predictor.cfg.INPUT.IMAGE_BITS)
        except InputError as error:
            failures.append(str(error))
            continue
        stem = output / file.name
        stem.parent.mkdir(parents=True, exist_ok=True)
        results = predictor(image)
        for task, picture in draw_results(image, results, predictor.metadata, threshold=threshold).items():
            write_picture(picture, Path(f"{stem}_{task}.png"))
            num_written += 1
        if save_masks:
            num_written += save_results(stem, results, predictor.metadata, name=file.path.name, threshold=threshold)
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
