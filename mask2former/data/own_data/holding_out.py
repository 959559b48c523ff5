"""A validation part for data that bring none: a fixed share of the images, chosen by their names."""

from __future__ import annotations

import hashlib

from mask2former.data.own_data.dataset import TRAIN, VALID, ImageEntry, OwnDataset

HELD_OUT_SHARE = 0.1


def hold_out(dataset: OwnDataset) -> str | None:
    """Move a tenth of the training images, at least one, to the validation part where there is none.

    The same images at every run. A single image is used for both. Returns what was done, None where nothing.
    """
    if dataset.parts.get(VALID):
        return None
    images = dataset.parts[TRAIN]
    if len(images) == 1:
        dataset.parts[VALID] = list(images)
        return "no validation part, and a single image: it is evaluated on what it was trained on"
    number = max(1, round(HELD_OUT_SHARE * len(images)))
    held_out = {id(image) for image in sorted(images, key=lambda image: _place(dataset, image))[:number]}
    dataset.parts[VALID] = [image for image in images if id(image) in held_out]
    dataset.parts[TRAIN] = [image for image in images if id(image) not in held_out]
    shown = ", ".join(image.file.name for image in dataset.parts[VALID][:5]) + (" …" if number > 5 else "")
    return (
        f"no validation part: {number} of {len(images)} images ({HELD_OUT_SHARE:.0%}, chosen by their names) are held "
        f"out of training for it: {shown}"
    )


def _place(dataset: OwnDataset, image: ImageEntry) -> str:
    name = image.file.relative_to(dataset.root) if image.file.is_relative_to(dataset.root) else image.file.name
    return hashlib.md5(str(name).encode(), usedforsecurity=False).hexdigest()
