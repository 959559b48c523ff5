#!/usr/bin/env python
"""Predicts images, videos or a webcam and writes overlays.

python demo/demo.py --config-file F --input FILES|DIR|GLOB --output DIR [--opts MODEL.WEIGHTS model.pth]
python demo/demo.py --config-file F --video-input clip.mp4 --output annotated.mp4 [--opts …]
python demo/demo.py --config-file F --webcam [0] [--output recorded.mp4] [--opts …]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from mask2former.commands.cli import predict_main

if __name__ == "__main__":
    sys.exit(predict_main())
