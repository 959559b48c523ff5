#!/usr/bin/env python
"""Converts weights between families.

python tools/convert_checkpoint.py SOURCE OUTPUT [--config-file F] [--verify] [--swap-channels]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from mask2former.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
