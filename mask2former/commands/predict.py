"""Predicts images, videos and cameras: writes an overlay per image and task, and on request the masks themselves."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from mask2former.commands.arguments import CommandParser
from mask2former.commands.predict_video import VideoOptions, find_videos, predict_camera, predict_videos
from mask2former.commands.setup import set_up
from mask2former.config import CfgNode
from mask2former.errors import ConfigError, InputError, UsageError
from mask2former.files.inputs import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    NamedFile,
    counted,
    describe_failures,
    find_files,
    prepare_folder,
)
from mask2former.files.pictures import PICTURE_SUFFIXES, write_picture
from mask2former.inference.outputs import CocoWriter, Drawing, save_results
from mask2former.inference.predictor import TASKS, Predictor
from mask2former.modeling.execution import PRECISIONS
from mask2former.visualization import Style

DESCRIPTION = (
    "Predict images, videos or a camera and write panoptic, instance and semantic overlays. A run folder, its "
    "model_final.pth or a zoo name after --weights is enough to know the model."
)
DEFAULT_OUTPUT = "predictions"
# Every query yields an instance, so a picture of all of them would show mostly wrong ones.
DEFAULT_INSTANCE_THRESHOLD = 0.5


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("inputs", nargs="*", metavar="FILE", help="images or videos, as after --input or --video-input")
    parser.add_model_options()
    parser.add_argument(
        "--input",
        nargs="+",
        metavar="PATH",
        help="images, folders (and those below), quoted patterns, or http(s) addresses",
    )
    parser.add_argument("--video-input", nargs="+", metavar="PATH", help="the same with videos")
    parser.add_argument(
        "--webcam", nargs="?", type=int, const=0, metavar="N", help="a camera, by default the first (0); q or Esc ends"
    )
    parser.add_output_option(
        "directory for the results, made if missing; for one image, video or camera also the name of a file; by "
        f"default {DEFAULT_OUTPUT} for FILE; without it, a camera is shown in a window"
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
    parser.add_argument("--alpha", type=float, default=0.5, metavar="A", help="0..1, opacity of the fill (%(default)s)")
    parser.add_argument("--label-size", type=float, default=1.0, metavar="F", help="of the text, 1 is the usual one")
    parser.add_argument("--no-labels", action="store_true", help="write no names into the pictures")
    parser.add_argument("--contours", action="store_true", help="draw outlines alone")
    parser.add_argument("--save-masks", action="store_true", help="also write the masks as PNG and json")
    parser.add_argument("--save-coco", action="store_true", help="also write the results of all images as COCO data")
    parser.add_argument("--max-frames", type=int, metavar="N", help="of a video or camera: stop after so many")
    parser.add_argument(
        "--random-weights", action="store_true", help="predict without weights, to try a config or measure its speed"
    )
    parser.keep_for_help_all("--import", "--opts", "--precision", "--max-frames", "--random-weights")


def run(args: argparse.Namespace) -> None:
    """Predict all images, videos or the camera of the command line.

    What cannot be read is reported and the others are done all the same. The results of a folder mirror it.
    Raises InputError before the model is built where an input, option or the output is wrong, and at the end where
    files could not be read or written.
    """
    _settle_inputs(args)
    style = Style(args.alpha, args.label_size, labels=not args.no_labels, contours=args.contours)
    cfg = _settle_config(args)
    threshold = DEFAULT_INSTANCE_THRESHOLD if args.confidence_threshold is None else args.confidence_threshold
    if args.output is None and args.webcam is None:
        raise InputError("--output is needed: a directory for the results")
    if args.input:
        images = find_images(args.input, output=Path(args.output).expanduser())
        output = ImageOutput.of(args.output, images)
        predictor = _build_predictor(cfg, args)
        coco = CocoWriter(output.folder, predictor.metadata, threshold=threshold) if args.save_coco else None
        drawing = Drawing(threshold, style)
        _predict_images(predictor, images, output=output, drawing=drawing, save_masks=args.save_masks, coco=coco)
        return
    if args.save_coco:
        raise InputError("--save-coco: of images; --save-masks writes the masks of videos")
    if args.max_frames is not None and args.max_frames < 1:
        raise InputError(f"--max-frames: expected at least 1, found {args.max_frames}")
    options = VideoOptions(Drawing(threshold, style), save_masks=args.save_masks, max_frames=args.max_frames)
    if args.webcam is not None:
        predict_camera(_build_predictor(cfg, args), args.webcam, output=args.output, options=options)
        return
    videos = find_videos(args.video_input, output=args.output)
    predict_videos(_build_predictor(cfg, args), videos, output=args.output, options=options)


def _settle_inputs(args: argparse.Namespace) -> None:
    """FILE arguments in the place of the option that they stand for; exactly one kind of input."""
    if args.inputs:
        are_videos = [path.lower().endswith(VIDEO_SUFFIXES) for path in args.inputs]
        if any(are_videos) and not all(are_videos):
            raise UsageError("images and videos: give the videos after --video-input, in a command of their own")
        kind = "video_input" if all(are_videos) else "input"
        setattr(args, kind, [*args.inputs, *(getattr(args, kind) or [])])
        args.output = args.output or DEFAULT_OUTPUT
    given = [value for value in (args.input, args.video_input, args.webcam) if value is not None]
    if len(given) != 1:
        raise UsageError("expected one of FILE or --input, --video-input and --webcam")


def _settle_config(args: argparse.Namespace) -> CfgNode:
    cfg = set_up(args).cfg.clone()
    cfg.defrost()
    if args.random_weights:
        cfg.MODEL.WEIGHTS = ""
    elif not cfg.MODEL.WEIGHTS:
        raise ConfigError("--weights: needed, since MODEL.WEIGHTS is empty; --random-weights predicts without any")
    cfg.TEST.SEMANTIC_LABELS = True  # all that is drawn and saved
    return cfg


def _build_predictor(cfg: CfgNode, args: argparse.Namespace) -> Predictor:
    return Predictor(cfg, task=args.task, score_threshold=args.confidence_threshold, precision=args.precision)


@dataclass(frozen=True)
class ImageOutput:
    """Where pictures go: below ``folder``, or, of one image, to the ``file`` that was named."""

    folder: Path
    file: Path | None = None

    @classmethod
    def of(cls, given: str, images: Sequence[NamedFile]) -> ImageOutput:
        """From --output, which names a file where it ends like a picture and is no folder; folders are made.

        Raises InputError where one file is to hold several images, is the image itself, or a folder cannot be made.
        """
        path = Path(given).expanduser()
        if path.suffix.lower() not in PICTURE_SUFFIXES or path.is_dir():
            return cls(prepare_folder(given))
        if len(images) > 1:
            raise InputError(f"--output {given}: one file for {len(images)} images; a directory takes several")
        if path.resolve() == images[0].path.resolve():
            raise InputError(f"--output {given}: is the image that is to be read")
        return cls(prepare_folder(str(path.parent)), path)

    def stem(self, image: NamedFile) -> Path:
        """What the names of the image's results begin with."""
        return self.folder / image.name if self.file is None else self.file.with_suffix("")

    def picture(self, image: NamedFile, task: str, *, is_only: bool) -> Path:
        """The file of a picture; several of one image whose file was named get their tasks' names."""
        suffix = ".png" if self.file is None else self.file.suffix
        return self.file if self.file is not None and is_only else Path(f"{self.stem(image)}_{task}{suffix}")

    def __str__(self) -> str:
        return str(self.file or self.folder)


def _predict_images(
    predictor: Predictor,
    images: Sequence[NamedFile],
    *,
    output: ImageOutput,
    drawing: Drawing,
    save_masks: bool,
    coco: CocoWriter | None,
) -> None:
    unread, unwritten, num_written, num_done = [], [], 0, 0
    for file in tqdm(images, desc="predict", unit="image", disable=None):
        try:
            image = predictor.read(file.source)
            results = predictor(image)
        except InputError as error:
            unread.append(str(error))
            continue
        stem = output.stem(file)
        try:
            stem.parent.mkdir(parents=True, exist_ok=True)
            pictures = drawing.draw(predictor.picture_of(image), results, predictor.metadata)
            for task, picture in pictures.items():
                write_picture(picture, output.picture(file, task, is_only=len(pictures) == 1))
            num_written += len(pictures)
            if save_masks:
                num_written += save_results(
                    stem, results, predictor.metadata, name=file.path.name, threshold=drawing.threshold
                )
            if coco is not None:
                coco.add(f"{file.name}{file.path.suffix}", image.shape[:2], results)
        except InputError as error:
            unwritten.append(str(error))
        except OSError as error:
            unwritten.append(f"{error.filename or stem}: {error.strerror}")
        else:
            num_done += 1
    num_written += len(coco.write()) if coco is not None else 0
    if num_done or not images:
        print(f"{counted(num_written, 'file')} of {counted(num_done, 'image')} in {output}")
    _refuse_failures({"could not be read": unread, "could not be written": unwritten}, of=counted(len(images), "image"))


def _refuse_failures(failures: Mapping[str, Sequence[str]], *, of: str) -> None:
    problems = [describe_failures(found, what, of=of) for what, found in failures.items() if found]
    if problems:
        raise InputError("; ".join(problems))


def find_images(inputs: Sequence[str], *, output: Path | None = None) -> list[NamedFile]:
    """Return image files as ``find_files`` finds them.

    Raises:
        InputError: what ``find_files`` raises, or a video is named instead.
    """
    images = find_files(inputs, IMAGE_SUFFIXES, kind="image", output=output)
    for image in images:
        if image.path.suffix.lower() in VIDEO_SUFFIXES:
            raise InputError(f"{image.path}: a video, not an image; --video-input takes it")
    return images
