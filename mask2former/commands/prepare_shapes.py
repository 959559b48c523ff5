"""The command that prepares the shapes data set."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from mask2former.commands.arguments import CommandParser
from mask2former.data.catalog import dataset_root
from mask2former.data.shapes.prepare import prepare_shapes
from mask2former.data.shapes.writing import ShapesParameters
from mask2former.errors import InputError

DESCRIPTION = (
    "Draw the shapes data set: images in COCO panoptic, COCO instances and semantic format, and videos in YouTube-VIS "
    "format. The same seed gives the same files. An interrupted run may be started again; a complete one is kept."
)


def add_arguments(parser: CommandParser) -> None:
    """Add the command's options to a parser."""
    default = ShapesParameters()
    parser.add_output_option("folder to write to, by default $DETECTRON2_DATASETS/shapes")
    for name, what in (
        ("num_train", "training images"),
        ("num_val", "validation images"),
        ("num_train_videos", "training videos"),
        ("num_val_videos", "validation videos"),
        ("seed", "seed"),
    ):
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=int, default=getattr(default, name), help=f"{what} (default: %(default)s)")
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        default=list(default.size),
        metavar="PIXELS",
        help="height and width, or one number for both (default: 128)",
    )
    parser.add_argument("--no-videos", action="store_true", help="images only")
    parser.add_argument("--num-workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="draw anew what was drawn before, whatever its parameters")


def run(args: argparse.Namespace) -> None:
    """Do what the parsed options ask for; raises DatasetError (see ``prepare_shapes``)."""
    if len(args.size) > 2:
        raise InputError(f"--size: expected one number or height and width, found {args.size}")
    output = Path(args.output).expanduser() if args.output else dataset_root() / "shapes"
    parameters = ShapesParameters(
        num_train=args.num_train,
        num_val=args.num_val,
        size=(args.size[0], args.size[-1]),
        num_train_videos=0 if args.no_videos else args.num_train_videos,
        num_val_videos=0 if args.no_videos else args.num_val_videos,
        seed=args.seed,
    )
    start = time.perf_counter()
    if not prepare_shapes(output, parameters, num_workers=args.num_workers, force=args.force):
        print(f"{output} is complete already")
        return
    videos = parameters.num_train_videos + parameters.num_val_videos
    print(
        f"{output}: {parameters.num_train} training and {parameters.num_val} validation images, {videos} videos, "
        f"drawn in {time.perf_counter() - start:.0f} s"
    )
