#!/usr/bin/env python
"""Makes a video file of each folder of frames: frames_to_video.py FOLDER … --output FOLDER [--fps N].

Data sets in YouTube-VIS format hold videos as folders of pictures; demo/demo.py takes video files.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from mask2former.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["frames-to-video", *sys.argv[1:]]))
