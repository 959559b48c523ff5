"""Prepares the public data sets, and draws the embedded one: what each makes of what, and their options."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from mask2former.commands.arguments import CommandParser, Subcommand
from mask2former.data.catalog import dataset_root
from mask2former.data.datasets.builtin import provision_of
from mask2former.data.preparation.ade20k import (
    prepare_ade20k_full_sem_seg,
    prepare_ade20k_ins_seg,
    prepare_ade20k_pan_seg,
    prepare_ade20k_sem_seg,
)
from mask2former.data.preparation.coco import prepare_coco_semantic, prepare_coco_stuff, prepare_coco_stuff_10k
from mask2former.data.preparation.street_scenes import prepare_cityscapes, prepare_mapillary_vistas
from mask2former.data.preparation.work import RunOptions
from mask2former.data.shapes.prepare import prepare_shapes
from mask2former.data.shapes.writing import ShapesParameters
from mask2former.errors import DatasetError, InputError, UsageError

DESCRIPTION = "Prepare a public data set for training and evaluation, or draw the embedded one."
_MAX_DEFAULT_WORKERS = 8


@dataclass(frozen=True)
class Preparation:
    """``prepare_split`` does one split of ``splits``, each given with what must be there to begin."""

    description: str
    splits: Mapping[str, str]
    prepare_split: Callable[[Path, str, RunOptions], None]


def _per_split(pattern: str, splits: Sequence[str]) -> dict[str, str]:
    return {split: pattern.format(split) for split in splits}


_COCO = _per_split("coco/annotations/panoptic_{}.json", ("train2017", "val2017", "val2017_100"))
_ADE20K_SPLITS = ("training", "validation")
_ADE20K_INSTANCES = _per_split("ADEChallengeData2016/annotations_instance/{}", _ADE20K_SPLITS)

PREPARATIONS: Mapping[str, Preparation] = MappingProxyType(
    {
        "coco_semantic": Preparation(
            "COCO panoptic annotations → label maps of all 133 classes: coco/panoptic_semseg_*.",
            _COCO,
            prepare_coco_semantic,
        ),
        "coco_stuff": Preparation(
            "COCO panoptic annotations → label maps of stuff, things being one class: coco/panoptic_stuff_*.",
            _COCO,
            prepare_coco_stuff,
        ),
        "coco_stuff_10k": Preparation(
            "COCO-Stuff 10k → images and label maps by split: coco/coco_stuff_10k/*_detectron2.",
            _per_split("coco/coco_stuff_10k/imageLists/{}.txt", ("train", "test")),
            prepare_coco_stuff_10k,
        ),
        "ade20k_sem_seg": Preparation(
            "ADE20K label maps, class 0 ignored → ADEChallengeData2016/annotations_detectron2.",
            _per_split("ADEChallengeData2016/annotations/{}", _ADE20K_SPLITS),
            prepare_ade20k_sem_seg,
        ),
        "ade20k_ins_seg": Preparation(
            "ADE20K instance maps → ADEChallengeData2016/ade20k_instance_*.json in COCO format.",
            _ADE20K_INSTANCES,
            prepare_ade20k_ins_seg,
        ),
        "ade20k_pan_seg": Preparation(
            "ADE20K label and instance maps → ADEChallengeData2016/ade20k_panoptic_* in COCO panoptic format.",
            _ADE20K_INSTANCES,
            prepare_ade20k_pan_seg,
        ),
        "ade20k_full_sem_seg": Preparation(
            "The full ADE20K → images and label maps of 847 classes: ADE20K_2021_17_01/*_detectron2.",
            _per_split("ADE20K_2021_17_01/images/ADE/{}", _ADE20K_SPLITS),
            prepare_ade20k_full_sem_seg,
        ),
        "cityscapes": Preparation(
            "Cityscapes label and instance maps → *_labelTrainIds.png and gtFine/cityscapes_panoptic_*.",
            _per_split("cityscapes/gtFine/{}", ("train", "val", "test")),
            prepare_cityscapes,
        ),
        "mapillary_vistas": Preparation(
            "Mapillary Vistas: annotations of version 1.2 where they are read, and a check that none is missing.",
            _per_split("mapillary_vistas/{}/images", ("training", "validation")),
            prepare_mapillary_vistas,
        ),
    }
)


def run_preparation(
    name: str, root: Path | None = None, *, splits: Sequence[str] = (), options: RunOptions | None = None
) -> None:
    """Prepare ``splits`` of a data set, by default all that are there, below ``root`` (``dataset_root()``).

    Raises:
        DatasetError: a split, its source or a file is missing or wrong.
    """
    preparation = PREPARATIONS[name]
    folder = dataset_root() if root is None else root
    options = options or RunOptions()
    if options.num_workers < 1:
        raise DatasetError(f"--num-workers: expected at least 1, found {options.num_workers}")
    unknown = [split for split in splits if split not in preparation.splits]
    if unknown:
        raise DatasetError(f"--splits: {unknown[0]!r} is none of {', '.join(preparation.splits)}")
    there = [split for split, source in preparation.splits.items() if (folder / source).exists()]
    missing = [split for split in splits if split not in there]
    if missing or not there:
        source = preparation.splits[missing[0] if missing else next(iter(preparation.splits))]
        raise DatasetError(f"{folder / source} not found; {provision_of(source)}")
    for split in splits or there:
        preparation.prepare_split(folder, split, options)


def _subcommand(name: str) -> Subcommand:
    preparation = PREPARATIONS[name]

    def add_arguments(parser: CommandParser) -> None:
        parser.add_argument(
            "--root", "--output", type=Path, help="folder of the data sets (default: $DETECTRON2_DATASETS)"
        )
        splits = ", ".join(preparation.splits)
        parser.add_argument("--splits", nargs="+", default=(), metavar="SPLIT", help=f"of {splits} (default: all)")
        workers = min(_MAX_DEFAULT_WORKERS, os.cpu_count() or 1)
        parser.add_argument("--num-workers", type=int, default=workers, metavar="N", help="processes (%(default)s)")
        parser.add_argument("--force", action="store_true", help="make anew what is there already")

    def run(args: argparse.Namespace) -> None:
        options = RunOptions(num_workers=args.num_workers, force=args.force)
        run_preparation(name, args.root, splits=args.splits, options=options)

    description = f"{preparation.description} May be started again: what is there and whole is kept."
    return Subcommand(preparation.description, description, add_arguments, run)


SHAPES_DESCRIPTION = (
    "Draw the shapes data set: images in COCO panoptic, COCO instances and semantic format, and videos in YouTube-VIS "
    "format. The same seed gives the same files. An interrupted run may be started again; a complete one is kept."
)


def _add_shapes_arguments(parser: CommandParser) -> None:
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


def _run_shapes(args: argparse.Namespace) -> None:
    """Do what the parsed options ask for.

    Raises:
        InputError: a size is wrong, or what ``prepare_shapes`` raises.
    """
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


SUBCOMMANDS: Mapping[str, Subcommand] = MappingProxyType(
    {
        "shapes": Subcommand(
            "The embedded data set: coloured shapes, as images and videos.",
            SHAPES_DESCRIPTION,
            _add_shapes_arguments,
            _run_shapes,
        ),
        **{name.replace("_", "-"): _subcommand(name) for name in PREPARATIONS},
    }
)


def add_arguments(parser: CommandParser) -> None:
    """Declare nothing: each data set has options of its own."""


def run(args: argparse.Namespace) -> None:
    """Say that a data set is missing; each has its own ``run``."""
    raise UsageError(f"a data set is needed: {', '.join(SUBCOMMANDS)}")
