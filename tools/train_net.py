#!/usr/bin/env python
"""Trains or evaluates a model.

python tools/train_net.py --config-file F [--eval-only] [--resume] [--num-gpus N] [KEY VALUE ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from mask2former.commands.cli import train_main

if __name__ == "__main__":
    sys.exit(train_main())
