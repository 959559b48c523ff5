#!/usr/bin/env python
"""Fine-tunes a model for instance segmentation with the Trainer of transformers (extra [transformers]).

python tools/train_hf.py --model_name_or_path FOLDER --dataset_name FOLDER --do_reduce_labels --image_height 256 \\
    --image_width 256 --output_dir DIR --do_train --do_eval [any of the TrainingArguments]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from mask2former.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["fine-tune-hf", *sys.argv[1:]]))
