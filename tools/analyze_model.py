#!/usr/bin/env python
"""Analyzes a model: operations, activations and parameters by module, and its structure.

python tools/analyze_model.py --config-file F --tasks flop activation parameter structure [--num-inputs N]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from mask2former.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["analyze", *sys.argv[1:]]))
