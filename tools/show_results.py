#!/usr/bin/env python
"""Prints what a training run reached, and where its files lie: show_results.py OUTPUT_DIR."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from mask2former.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["show-results", *sys.argv[1:]]))
