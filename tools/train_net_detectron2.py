#!/usr/bin/env python
"""Trains or evaluates a model on detectron2's own engine: its trainer, loaders and checkpointer.

python tools/train_net_detectron2.py --config-file F [--eval-only] [--resume] [--num-gpus N] [KEY VALUE ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from mask2former.integrations.detectron2.training import train_main

if __name__ == "__main__":
    sys.exit(train_main())
