"""Ids in label files: class ids to those a model is trained on; segment ids as colours of COCO panoptic PNG files."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import torch

from mask2former.errors import DatasetError

_UNKNOWN = -1


def labels_to_train_ids(labels: np.ndarray, train_ids: Mapping[int, int], *, file_name: str) -> np.ndarray:
    """Return ``train_ids[label]`` (H, W) int32 for labels (H, W) of any integer type.

    Raises:
        DatasetError: a label has no train id; the message begins with ``file_name``.
    """
    table = np.full(max([*train_ids, 0]) + 2, _UNKNOWN, dtype=np.int32)  # the last entry stands for what lies beyond
    table[list(train_ids)] = list(train_ids.values())
    # Typed: the place of the last entry need not fit into the type of the labels.
    places = np.where((labels < 0) | (labels >= len(table)), np.int32(len(table) - 1), labels)
    mapped = table[places]
    if (mapped == _UNKNOWN).any():
        unknown = np.unique(labels[mapped == _UNKNOWN]).tolist()
        raise DatasetError(
            f"{file_name}: labels {unknown[:10]} have no class, those with one are {sorted(train_ids)[:20]}"
        )
    return mapped


def semantic_labels(sem_seg: torch.Tensor | np.ndarray) -> np.ndarray:
    """Return the class (H, W) of each pixel of a semantic result.

    The result is scores (K, H, W), of which the largest counts, or labels (H, W), returned as they are.

    Raises:
        ValueError: the result has neither form.
    """
    result = torch.as_tensor(sem_seg)
    if result.ndim == 3:
        return result.argmax(dim=0).cpu().numpy()
    if result.ndim != 2 or result.is_floating_point():
        raise ValueError(
            "a semantic result is scores (K, H, W) or integer labels (H, W), "
            f"found shape {tuple(result.shape)} of {result.dtype}"
        )
    return result.cpu().numpy()


def rgb_to_id(rgb: np.ndarray) -> np.ndarray:
    """Return ids (H, W) int32 of colours (H, W, 3) uint8."""
    if rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3 and rgb.size:
        # A fourth byte makes pixels little-endian integers, nine times faster than arithmetic on channels.
        ids = cv2.cvtColor(rgb, cv2.COLOR_RGB2RGBA).view("<i4")[..., 0]
        ids &= 0xFFFFFF  # in place: of large maps there is no room for two
        return ids.astype(np.int32, copy=False)
    channels = rgb.astype(np.int32)
    return channels[..., 0] + 256 * channels[..., 1] + 256 * 256 * channels[..., 2]


def id_to_rgb(ids: np.ndarray) -> np.ndarray:
    """Return colours (H, W, 3) uint8 of ids (H, W) in 0 .. 2**24 - 1.

    Raises:
        ValueError: an id does not fit into three bytes.
    """
    if ids.size and (ids.min() < 0 or ids.max() >= 1 << 24):
        raise ValueError(f"segment ids must lie in 0..{(1 << 24) - 1}, found {ids.min()}..{ids.max()}")
    ids = ids.astype(np.int32)
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=-1).astype(np.uint8)
