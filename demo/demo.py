#!/usr/bin/env python
"""Predicts images and writes overlays.

python demo/demo.py --config-file F --input FILES|DIR|GLOB --output DIR [--opts MODEL.WEIGHTS model.pth]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from mask2former.cli import predict_main

if __name__ == "__main__":
    sys.exit(predict_main())
