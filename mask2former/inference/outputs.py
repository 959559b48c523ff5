"""What a prediction command makes of results: pictures by task, and files of masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mask2former.inference.mask_files import save_instances, save_panoptic, save_semantic
from mask2former.structures import Metadata
from mask2former.visualization import draw_instances, draw_panoptic, draw_semantic


def draw_results(
    image: np.ndarray, results: dict[str, Any], metadata: Metadata, *, threshold: float
) -> dict[str, np.ndarray]:
    """An overlay (h, w, 3) uint8 RGB by task; instances that score less than `threshold` are left out."""
    pictures = {}
    if "panoptic_seg" in results:
        pictures["panoptic"] = draw_panoptic(image, results["panoptic_seg"], metadata)
    if "instances" in results:
        pictures["instance"] = draw_instances(image, results["instances"], metadata, score_threshold=threshold)
    if "sem_seg" in results:
        pictures["semantic"] = draw_semantic(image, results["sem_seg"], metadata)
    return pictures


def save_results(stem: Path, results: dict[str, Any], metadata: Metadata, *, name: str, threshold: float) -> int:
    """Write the masks of all tasks to files whose names begin with `stem`; returns the number of files.

    name: what the json files call the image.
    """
    written = []
    if "panoptic_seg" in results:
        written += save_panoptic(stem, results["panoptic_seg"], metadata=metadata, image_name=name)
    if "instances" in results:
        written += save_instances(
            stem, results["instances"], metadata=metadata, image_name=name, score_threshold=threshold
        )
    if "sem_seg" in results:
        written += save_semantic(stem, results["sem_seg"])
    return len(written)
