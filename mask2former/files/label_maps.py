"""Label maps: images of one channel whose numbers are class ids."""

from __future__ import annotations

import numpy as np

from mask2former.errors import DatasetError, InputError
from mask2former.files.images import opened_image, stored_pixels
from mask2former.files.opening import PathLike


def read_label_map(path: PathLike, *, error: type[InputError] = DatasetError) -> np.ndarray:
    """Class ids (H, W) uint8, or int32 where the file has more than eight bits; indices, where it has a palette.

    Python numbers above 255 do not mix with the narrow type: widen the array before they meet.

    Raises:
        DatasetError (or ``error``): the file is missing, cut off, damaged, or has more than one channel.
    """
    with opened_image(path, error=error) as image:
        pixels = stored_pixels(image)
    if pixels.ndim != 2 or pixels.dtype.kind not in "ui":
        raise error(f"{path}: a label map has one channel of class ids, found {describe_pixels(pixels)}")
    return pixels.astype(np.uint8 if pixels.dtype.itemsize == 1 else np.int32, copy=False)


def describe_pixels(pixels: np.ndarray) -> str:
    """Channels and type in words, for errors."""
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
    return f"{channels} channel{'s' if channels > 1 else ''} of {pixels.dtype}"
