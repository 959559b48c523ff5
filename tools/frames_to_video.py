#!/usr/bin/env python
"""Makes a video file of each folder of frames: frames_to_video.py FOLDER … --output FOLDER [--fps N].

Data sets in YouTube-VIS format hold videos as folders of pictures; demo/demo.py takes video files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from mask2former.errors import InputError
from mask2former.files.finding import IMAGE_SUFFIXES
from mask2former.files.images import read_image
from mask2former.files.videos import VideoWriter


def main(arguments: list[str] | None = None) -> int:
    """Write the videos; 1 after one line on stderr where a folder or a frame is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="frames, in the order of their names")
    parser.add_argument("--output", type=Path, required=True, help="folder for the videos, made if missing")
    parser.add_argument("--fps", type=float, default=6.0, help="frames a second (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        for folder in options.folders:
            write_video(folder, options.output / f"{folder.name}.mp4", fps=options.fps)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def write_video(folder: Path, path: Path, *, fps: float) -> None:
    """Write the pictures in a folder as one video.

    Raises:
        InputError: there is no picture, one cannot be read, or the video cannot be written.
    """
    frames = sorted(p for p in folder.glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not frames:
        raise InputError(f"{folder}: no folder with pictures")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = VideoWriter(path, fps=fps)
    is_complete = False
    try:
        for frame in frames:
            writer.write(read_image(frame, "RGB"))
        is_complete = True
    finally:
        writer.close(keep=is_complete)
    print(f"{path}: {len(frames)} frames")


if __name__ == "__main__":
    sys.exit(main())
