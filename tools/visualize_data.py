#!/usr/bin/env python
"""Draws the annotations of a data set, or what training sees of them after augmentation.

python tools/visualize_data.py --config-file F --source annotation|dataloader --output-dir DIR [--num-images N]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from mask2former.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["visualize", *sys.argv[1:]]))
