"""Label maps: images of one channel whose numbers are class ids."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mask2former.errors import DatasetError, InputError
from mask2former.files.images import opened_image, stored_pixels
from mask2former.files.opening import PathLike

Colour = tuple[int, int, int]


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


def read_coloured_map(path: PathLike, id_of: Mapping[Colour, int]) -> tuple[np.ndarray, bool]:
    """Class ids (H, W) of a label map, or of a picture whose colours stand for them; and whether it is a label map.

    Raises:
        DatasetError: the file is missing or damaged, or has a colour that ``id_of`` lacks.
    """
    with opened_image(path, error=DatasetError) as image:
        pixels = stored_pixels(image)
    if pixels.ndim == 2:
        return read_label_map(path), True
    if pixels.dtype != np.uint8 or pixels.shape[-1] < 3:
        raise DatasetError(f"{path}: expected class ids or colours, found {describe_pixels(pixels)}")
    channels = pixels[..., :3].astype(np.int32)
    codes, places = np.unique(channels[..., 0] << 16 | channels[..., 1] << 8 | channels[..., 2], return_inverse=True)
    colours = [(code >> 16, code >> 8 & 255, code & 255) for code in codes.tolist()]
    if not id_of:
        raise DatasetError(f"{path}: a picture of {len(colours)} colours, and no table says which classes these are")
    unknown = [colour for colour in colours if colour not in id_of]
    if unknown:
        raise DatasetError(f"{path}: {len(unknown)} colours stand for no class, for instance {unknown[:3]}")
    ids = np.array([id_of[colour] for colour in colours], dtype=np.int32)
    return ids[places].reshape(pixels.shape[:2]), False


def describe_pixels(pixels: np.ndarray) -> str:
    """Channels and type in words, for errors."""
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
    return f"{channels} channel{'s' if channels > 1 else ''} of {pixels.dtype}"
