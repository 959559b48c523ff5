#!/usr/bin/env python
"""Converts data sets to and from the format of the library datasets.

python tools/convert_dataset.py SOURCE OUTPUT [--to datasets|coco-instances|coco-panoptic|labelme|png]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from mask2former.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert-dataset", *sys.argv[1:]]))
