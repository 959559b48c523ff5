"""Converts data sets: COCO, labelme and PNG masks to and from the columns of the library datasets."""

from __future__ import annotations

import argparse

from mask2former.commands.arguments import CommandParser
from mask2former.data.own_data import ClassChoice, all_formats, convert_own_data
from mask2former.data.own_data.dataset import DATASETS
from mask2former.data.own_data.datasets_library import is_datasets_folder
from mask2former.errors import InputError, UsageError

DESCRIPTION = (
    "Convert a data set. SOURCE is a file, folder or zip file as labelling tools write it (COCO, labelme, YOLO, Pascal "
    "VOC, CVAT, Label Studio, Supervisely, VIA, PNG masks, …), or a folder of the library datasets with the columns "
    "image, annotation and semantic_class_to_id. OUTPUT is a new folder. "
    "Segments come out without overlaps, the smaller on top; crowds become background."
)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("source", metavar="SOURCE", help="what to read; its format is detected")
    parser.add_argument("target", nargs="?", metavar="OUTPUT", help="new folder to write")
    parser.add_output_option("the same as OUTPUT")
    parser.add_argument(
        "--to",
        metavar="FORMAT",
        help=f"what to write (datasets, unless SOURCE is in that format): {', '.join(sorted(_names()))}, or one of "
        "a module of --import",
    )
    parser.add_argument(
        "--read",
        choices=sorted(_names()),
        metavar="FORMAT",
        help="which to read where a folder holds several, as COCO instances and panoptic (the first)",
    )
    parser.add_argument("--classes", metavar="FILE", help="class names, one a line: the first is class 0; or ID: NAME")
    parser.add_argument(
        "--ignore-label",
        action="append",
        metavar="ID",
        help="id or class that becomes background (255 for PNG masks; none: no id); may be given several times",
    )
    parser.add_left_out_options()


def run(args: argparse.Namespace) -> None:
    """Convert as the command line says.

    Raises:
        DatasetError: what ``convert_own_data`` raises.
        InputError: no format to write was chosen.
    """
    if (args.target is None) == (args.output is None):
        raise UsageError("expected OUTPUT once, after SOURCE or as --output")
    output = args.target or args.output
    if args.to is None and is_datasets_folder(args.source):
        raise InputError(f"--to: {args.source} is a data set of the library datasets; say what it should become")
    target, names = args.to or DATASETS, _names()
    if target not in names:
        raise UsageError(f"--to: expected one of {', '.join(sorted(names))}, found {target!r}")
    ignored = None if args.ignore_label is None else tuple(args.ignore_label)
    written = convert_own_data(
        args.source,
        output,
        target=names[target],
        preferred=names.get(args.read),
        choice=ClassChoice(args.classes, ignored, args.drop_empty_classes, args.skip_bad),
    )
    for note in written.notes:
        print(note)
    counts = " and ".join(f"{number} {part} images" for part, number in written.lengths.items())
    print(f"{output}: {target}, {counts}, {len(written.classes)} classes")
    if target == DATASETS:
        print("class ids begin at 1, 0 is background: train with --do_reduce_labels")


def _names() -> dict[str, str]:
    """Names of formats by those of the command line."""
    return {data_format.option: data_format.name for data_format in all_formats()}
