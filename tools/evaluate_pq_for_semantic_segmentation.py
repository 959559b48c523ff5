#!/usr/bin/env python
"""PQ of a semantic model, every class counting as stuff, from the sem_seg_predictions.json that evaluation writes.

python tools/evaluate_pq_for_semantic_segmentation.py --dataset-name ade20k_sem_seg_val --json-file FILE
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from mask2former.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate-semantic-pq", *sys.argv[1:]]))
