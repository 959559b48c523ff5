"""Class ids as label files have them, and as a model trains them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mask2former.errors import DatasetError

_UNKNOWN = -1


def labels_to_train_ids(labels: np.ndarray, train_ids: Mapping[int, int], *, file_name: str) -> np.ndarray:
    """``train_ids[label]`` (H, W) int32 for labels (H, W) of any integer type.

    Raises:
        DatasetError: a label has no train id; the message begins with ``file_name``.
    """
    table = np.full(max([*train_ids, 0]) + 2, _UNKNOWN, dtype=np.int32)  # the last entry stands for what lies beyond
    table[list(train_ids)] = list(train_ids.values())
    places = np.where((labels < 0) | (labels >= len(table)), len(table) - 1, labels)
    mapped = table[places]
    if (mapped == _UNKNOWN).any():
        unknown = np.unique(labels[mapped == _UNKNOWN]).tolist()
        raise DatasetError(
            f"{file_name}: labels {unknown[:10]} have no class, those with one are {sorted(train_ids)[:20]}"
        )
    return mapped
