"""Semantic masks as files: ``train/images``, ``train/masks``, and the same below ``valid`` (or ``val``).

A mask is a single-channel PNG of class ids (8 or 16 bits, or palette indices) with the name of its image.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mask2former.data.own_data.dataset import (
    PNG_TREE,
    TRAIN,
    VALID,
    DataClass,
    FileMask,
    ImageEntry,
    OwnDataset,
    Segment,
)
from mask2former.data.own_data.scanning import IMAGE_SUFFIXES, check_pairs, files_by_stem, scan
from mask2former.errors import DatasetError
from mask2former.files.images import exif_note, read_image_size
from mask2former.files.maps import read_label_map

PART_FOLDERS = {TRAIN: ("train", "training"), VALID: ("valid", "val", "validation")}
VOID_ID = 255  # of pixels that are of no class, unless said otherwise
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")  # without loss: a JPEG would invent ids


def is_png_tree(root: Path) -> bool:
    """Whether a folder holds a training part in this form."""
    return _part_folder(root, TRAIN) is not None


def read_png_tree(root: Path, *, num_workers: int | None = None) -> OwnDataset:
    """Every image with one segment for each class id in its mask; classes are called ``class_ID``.

    Raises:
        DatasetError: a part is missing or empty, an image or mask lacks its partner, cannot be read, has several
            channels or another size.
    """
    parts = {part: _read_part(folder, num_workers) for part in (TRAIN, VALID) if (folder := _part_folder(root, part))}
    if TRAIN not in parts:
        raise DatasetError(f"{root}: expected the folders train/images and train/masks")
    ids = sorted({segment.class_id for images in parts.values() for image in images for segment in image.segments})
    classes = [DataClass(class_id, f"class_{class_id}", is_thing=False) for class_id in ids]
    return OwnDataset(PNG_TREE, root, classes, parts, has_label_maps=True, void_ids=frozenset([VOID_ID]))


def _part_folder(root: Path, part: str) -> Path | None:
    found = [root / name for name in PART_FOLDERS[part] if (root / name / "images").is_dir()]
    found = [folder for folder in found if (folder / "masks").is_dir()]
    if len(found) > 1:
        raise DatasetError(f"{found[0]} and {found[1]}: which of them is the {part} part? Keep one")
    return found[0] if found else None


def _read_part(folder: Path, num_workers: int | None) -> list[ImageEntry]:
    images = files_by_stem(folder / "images", IMAGE_SUFFIXES)
    masks = files_by_stem(folder / "masks", MASK_SUFFIXES)
    if not images or not masks:
        empty, suffixes = ("images", IMAGE_SUFFIXES) if not images else ("masks", MASK_SUFFIXES)
        raise DatasetError(f"{folder / empty}: no file found (looked for {', '.join(suffixes)})")
    pairs = [(stem, images[stem], masks[stem]) for stem in check_pairs(images, masks, folder / "masks")]
    return scan(_read_pair, pairs, description=f"masks of {folder.name}", num_workers=num_workers)


def _read_pair(pair: tuple[str, Path, Path]) -> ImageEntry:
    stem, image, mask = pair
    height, width = read_image_size(image)
    labels = read_label_map(mask)
    if labels.shape != (height, width):
        raise DatasetError(
            f"{mask}: mask has (height, width) = {labels.shape}, its image {image} has {(height, width)}"
            f"{exif_note(image)}"
        )
    segments = tuple(
        Segment(class_id, FileMask(mask, class_id), area=count) for class_id, count in count_values(labels).items()
    )
    return ImageEntry(image, height, width, stem, segments, mask)


def count_values(labels: np.ndarray) -> dict[int, int]:
    """Pixels of each value in ``labels`` (H, W), in order of the values."""
    if labels.dtype == np.uint8:
        counts = np.bincount(labels.reshape(-1), minlength=256)
        values = np.flatnonzero(counts)
        counts = counts[values]
    else:
        values, counts = np.unique(labels, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))
