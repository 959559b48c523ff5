"""What determines the files of the shapes data set, and the random numbers of each of its items."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from mask2former.data.shapes.fields import Size
from mask2former.data.shapes.scene import check_size
from mask2former.errors import DatasetError

# Change it when the same parameters begin to give other pictures: data sets drawn before are then told apart.
FORMAT_VERSION = 2
SPLITS = ("train", "val")
KINDS = ("image", "video")


@dataclass(frozen=True)
class ShapesParameters:
    """The size of the data set and of its pictures. The items of a split do not depend on how many there are."""

    num_train: int = 2000
    num_val: int = 200
    size: Size = (128, 128)
    num_train_videos: int = 300
    num_val_videos: int = 40
    num_frames: tuple[int, int] = (10, 20)  # fewest and most frames of a video
    seed: int = 0

    def __post_init__(self) -> None:
        check_size(self.size)
        for name, least in (
            ("num_train", 1),
            ("num_val", 1),
            ("num_train_videos", 0),
            ("num_val_videos", 0),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise DatasetError(f"{name}: expected at least {least}, found {getattr(self, name)}")
        if not 1 <= self.num_frames[0] <= self.num_frames[1]:
            raise DatasetError(f"num_frames: expected 1 <= fewest <= most, found {self.num_frames}")

    def count(self, kind: str, split: str) -> int:
        """Return how many items of a kind a split has."""
        return int(getattr(self, f"num_{split}" if kind == "image" else f"num_{split}_videos"))

    def manifest(self) -> dict[str, Any]:
        """Return the parameters as they stand in the manifest file."""
        content = {"dataset": "shapes", "format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        return json.loads(json.dumps(content))  # so that it equals what is read back


def item_generator(seed: int, kind: str, split: str, index: int) -> np.random.Generator:
    """Return the random numbers of one item; those of different items, splits and kinds are independent."""
    key = (KINDS.index(kind), SPLITS.index(split), index)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
