"""Makes a video file of each folder of frames, as data sets in YouTube-VIS format hold them."""

from __future__ import annotations

import argparse
from pathlib import Path

from mask2former.commands.arguments import CommandParser
from mask2former.errors import InputError
from mask2former.files.images import read_image
from mask2former.files.inputs import IMAGE_SUFFIXES
from mask2former.files.videos import VideoWriter

DESCRIPTION = (
    "Make a video file of each folder of frames. Data sets in YouTube-VIS format hold videos as folders of pictures; "
    "predict takes video files."
)
_FPS = 6.0  # of YouTube-VIS


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="frames, in the order of their names")
    parser.add_output_option("folder for the videos, made if missing", type=Path, required=True)
    parser.add_argument("--fps", type=float, default=_FPS, help="frames a second (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Write the videos.

    Raises:
        InputError: what ``write_video`` raises.
    """
    for folder in args.folders:
        write_video(folder, args.output / f"{folder.name}.mp4", fps=args.fps)


def write_video(folder: Path, path: Path, *, fps: float) -> None:
    """Write the pictures in a folder as one video.

    Raises:
        InputError: there is no picture, one cannot be read, or the video cannot be written.
    """
    frames = sorted(p for p in folder.glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not frames:
        raise InputError(f"{folder}: no folder with pictures")
    writer = VideoWriter(path, fps=fps)
    is_complete = False
    try:
        for frame in frames:
            writer.write(read_image(frame, "RGB"))
        is_complete = True
    finally:
        writer.close(keep=is_complete)
    print(f"{path}: {len(frames)} frames")
