"""The test-time size of an image, and resizing to it as Pillow does: the same pixels, without Pillow.

Letters: H W size, C channels.
"""

from __future__ import annotations

import numpy as np

_PRECISION_BITS = 22  # of Pillow's weights for 8-bit pixels


def shortest_edge_size(size: tuple[int, int], length: int, max_size: int) -> tuple[int, int]:
    """Return (height, width) of an image of ``size`` whose shorter side is resized to ``length``.

    It is smaller if the longer side would exceed ``max_size``; a ``length`` of 0 leaves the size.
    """
    if length == 0:
        return size
    # Parity: the order of these products decides how halves are rounded (test_resize_shortest_edge_sizes).
    height, width = size
    scale = length * 1.0 / min(height, width)
    if height < width:
        new_height, new_width = float(length), scale * width
    else:
        new_height, new_width = scale * height, float(length)
    if max(new_height, new_width) > max_size:
        scale = max_size * 1.0 / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return max(int(new_height + 0.5), 1), max(int(new_width + 0.5), 1)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return an image (H, W, C) uint8 at ``size``: bilinear, with a support that grows when shrinking."""
    for axis in (1, 0):
        if image.shape[axis] != size[axis]:
            image = _resize_axis(image, size[axis], axis=axis)
    return image


def _resize_axis(image: np.ndarray, length: int, *, axis: int) -> np.ndarray:
    first, weights = _weights(image.shape[axis], length)
    shape = [1, 1, 1]
    shape[axis] = length
    total = np.full((*image.shape[:axis], length, *image.shape[axis + 1 :]), 1 << (_PRECISION_BITS - 1), np.int32)
    for tap in range(weights.shape[1]):
        index = np.minimum(first + tap, image.shape[axis] - 1)  # beyond the edge the weight is 0
        total += image.take(index, axis=axis).astype(np.int32) * weights[:, tap].reshape(shape)
    return np.clip(total >> _PRECISION_BITS, 0, 255).astype(np.uint8)


def _weights(source: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first source pixel (length,) and the weights (length, taps) int32 of each pixel."""
    scale = source / length
    reach = max(scale, 1.0)
    centres = (np.arange(length) + 0.5) * scale
    first = np.maximum((centres - reach + 0.5).astype(np.int64), 0)
    stop = np.minimum((centres + reach + 0.5).astype(np.int64), source)
    pixels = first[:, None] + np.arange(int((stop - first).max()))
    shares = np.maximum(1 - np.abs((pixels - centres[:, None] + 0.5) / reach), 0) * (pixels < stop[:, None])
    shares /= shares.sum(axis=1, keepdims=True)
    return first, (shares * (1 << _PRECISION_BITS) + 0.5).astype(np.int32)
