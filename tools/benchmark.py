#!/usr/bin/env python
"""Times a config on this machine: data, training or inference, stage by stage.

python tools/benchmark.py --config-file F --task data|data_advanced|train|eval [--size H W] [--num-iters N]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from mask2former.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
