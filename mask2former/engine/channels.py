"""Images of channels: how many there are, and their mean and standard deviation, measured before training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mask2former.config import CfgNode
from mask2former.errors import ConfigError
from mask2former.files.channels import count_channels, read_channels

logger = logging.getLogger(__name__)

_MOST_IMAGES = 500  # measured: more change the third digit


def settle_channels(cfg: CfgNode, files: Sequence[str | Path], *, is_known: bool, detect: bool = False) -> CfgNode:
    """Return ``cfg`` with a mean and a standard deviation for each of ``INPUT.CHANNELS``, measured unless known.

    With ``detect`` and without such a number, files that are no pictures of bytes tell it. Says what it found.

    Raises:
        ConfigError: ``INPUT.CHANNELS`` is negative.
        DatasetError: a file cannot be read, or has another number of channels.
    """
    num_channels = cfg.INPUT.CHANNELS or (count_channels(files[0]) if detect and files else 0)
    if num_channels < 0:
        raise ConfigError(f"INPUT.CHANNELS: expected at least 0, found {num_channels}")
    if not num_channels or is_known:
        return cfg
    step = max(len(files) / _MOST_IMAGES, 1)
    chosen = [files[int(place * step)] for place in range(min(len(files), _MOST_IMAGES))]
    mean, std = measure_channels(chosen, num_channels)
    settled = cfg.clone()
    settled.defrost()
    settled.INPUT.CHANNELS = num_channels
    settled.MODEL.PIXEL_MEAN, settled.MODEL.PIXEL_STD = mean, std
    if cfg.is_frozen():
        settled.freeze()
    rows = "\n".join(f"  channel {i}: mean {m:.6g}, std {s:.6g}" for i, (m, s) in enumerate(zip(mean, std)))
    note = "\n  colour jitter is left out: these are no colours" if cfg.INPUT.COLOR_AUG_SSD else ""
    logger.info("INPUT.CHANNELS %d, measured on %d images:\n%s%s", num_channels, len(chosen), rows, note)
    return settled


def measure_channels(files: Sequence[str | Path], num_channels: int) -> tuple[list[float], list[float]]:
    """Return the mean and the standard deviation of each channel over all pixels of the files; of a constant one 1.

    Raises:
        DatasetError: a file cannot be read, or has another number of channels.
    """
    count, total, squares = 0, np.zeros(num_channels), np.zeros(num_channels)
    shift = None  # near the mean: squares of large numbers would lose their digits
    for file in tqdm(files, desc="channels", unit="image", disable=None):
        pixels = read_channels(str(file), num_channels).reshape(-1, num_channels).astype(np.float64)
        shift = pixels.mean(0) if shift is None else shift
        pixels -= shift
        count, total, squares = count + len(pixels), total + pixels.sum(0), squares + np.square(pixels).sum(0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - np.square(mean), 0))
    mean = mean + (0 if shift is None else shift)
    return [float(f"{m:.8g}") for m in mean], [float(f"{s:.8g}") if s > 0 else 1.0 for s in std]
