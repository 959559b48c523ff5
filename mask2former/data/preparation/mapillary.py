"""Prepare Mapillary Vistas: put annotations of version 1.2 where the data sets read them, and check them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mask2former.data.preparation.work import RunOptions, link_all, run_all
from mask2former.errors import DatasetError
from mask2former.files.images import read_image_size
from mask2former.files.json_files import read_json_object, require_folder
from mask2former.files.pictures import is_intact

FOLDER = "mapillary_vistas"
_ROLES = ("labels", "instances", "panoptic")
_PANOPTIC_JSON = "panoptic_2018.json"


def prepare_mapillary_vistas(root: Path, split: str, options: RunOptions) -> None:
    """Move in the annotations of v1.2/ if the download is version 2.0; then check that every image has its own."""
    folder = root / FOLDER / split
    nested = folder / "v1.2"
    for role in _ROLES:
        if (nested / role).is_dir():
            pairs = [(path, folder / role / path.name) for path in sorted((nested / role).iterdir())]
            link_all(pairs, options, description=f"{split}/{role}")
    images = sorted(require_folder(folder / "images", "image").glob("*.jpg"))
    if not images:
        raise DatasetError(f"no *.jpg file in {folder / 'images'}")
    read_json_object(folder / "panoptic" / _PANOPTIC_JSON, ("annotations",))
    run_all(partial(_check_image, folder=folder), images, options, description=f"{split}: checking")
    print(f"{split}: {len(images)} images have their annotations")


def _check_image(image: Path, folder: Path) -> None:
    size = read_image_size(image)
    for role in ("labels", "panoptic"):
        path = folder / role / f"{image.stem}.png"
        if not is_intact(path, size):
            state = "is cut off, damaged, or has another size than its image" if path.exists() else "not found"
            raise DatasetError(f"{path} {state}")
