"""Replace label values by a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mask2former.errors import DatasetError
from mask2former.files.maps import read_panoptic_ids

_NUM_VALUES = 1 << 16


def lookup(
    values: np.ndarray, table: dict[int, int], path: Path, *, default: int | None = None, dtype: type = np.uint8
) -> np.ndarray:
    """Return ``table[value]`` (H, W) for values (H, W) of 0 to 65535; ``default`` for values without an entry.

    Raises:
        DatasetError: a value of the file ``path`` has no entry and there is no default.
    """
    mapped_values = np.full(_NUM_VALUES, -1 if default is None else default, dtype=np.int32)
    mapped_values[list(table)] = list(table.values())
    mapped = mapped_values[values]
    if (mapped < 0).any():
        unknown = np.unique(values[mapped < 0]).tolist()
        raise DatasetError(f"{path}: labels {unknown[:10]} have no class; those with one are {sorted(table)}")
    return mapped.astype(dtype)


def read_red_and_green(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the first two channels (H, W) int32 of an RGB label file.

    Raises:
        DatasetError: the file is missing, damaged or not coloured.
    """
    channels = read_panoptic_ids(path)
    return channels & 255, channels >> 8 & 255
