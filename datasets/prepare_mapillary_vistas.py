#!/usr/bin/env python
"""Prepare Mapillary Vistas; see --help."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from mask2former.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare", "mapillary-vistas", *sys.argv[1:]]))
