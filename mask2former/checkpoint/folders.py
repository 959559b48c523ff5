"""Folders that stand for weights: those of transformers, of a run, and with one file of weights."""

from __future__ import annotations

import os
from pathlib import Path

FINAL, BEST = "model_final.pth", "model_best.pth"
LAST = "last_checkpoint"  # names the newest checkpoint of a run, as detectron2 writes it
WEIGHTS_SUFFIXES = (".pth", ".pt", ".bin", ".pkl", ".safetensors")
TRANSFORMERS_FILES = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin")
WHOLE_FILES = (*TRANSFORMERS_FILES[1:], FINAL, BEST)


def find_weights_file(folder: Path) -> Path | None:
    """Return the weights file of a folder.

    That is: the weights of transformers; the newer of a run's final and best weights; its newest checkpoint; or the
    only file.
    """
    for name in TRANSFORMERS_FILES:
        if (folder / name).is_file():
            return folder / name
    finished = [folder / name for name in (FINAL, BEST) if (folder / name).is_file()]
    if finished:
        return max(finished, key=os.path.getmtime)
    try:
        last = folder / Path((folder / LAST).read_text(encoding="utf-8").strip()).name
    except (OSError, ValueError):
        last = folder
    if last.is_file():
        return last
    others = [path for path in sorted(folder.glob("*")) if path.suffix in WEIGHTS_SUFFIXES and path.is_file()]
    return others[0] if len(others) == 1 else None
