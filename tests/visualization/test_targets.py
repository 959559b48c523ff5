from __future__ import annotations

import numpy as np
import pytest
import torch

from mask2former.errors import InputError
from mask2former.structures import Metadata
from mask2former.visualization.overlays import draw_targets, join_frames

IMAGE = np.full((40, 60, 3), 90, dtype=np.uint8)


def masks_of(*columns: slice) -> torch.Tensor:
    masks = torch.zeros((len(columns), 40, 60), dtype=torch.bool)
    for mask, where in zip(masks, columns, strict=True):
        mask[5:35, where] = True
    return masks


def named(**entries: object) -> Metadata:
    return Metadata("some").set(**entries)


def color_at(picture: np.ndarray, x: int, y: int = 8) -> list[int]:
    """The colour over a pixel of the image, away from labels."""
    scale = picture.shape[0] / 40
    return picture[int(y * scale), int(x * scale)].tolist()


def test_draw_targets_without_targets_is_the_image() -> None:
    picture = draw_targets(IMAGE, torch.zeros(0), torch.zeros((0, 40, 60), dtype=torch.bool))
    assert (picture == 90).all()


def test_draw_targets_tells_objects_of_one_class_apart_but_not_regions() -> None:
    masks, classes = masks_of(slice(2, 18), slice(40, 58)), torch.tensor([1, 1])
    objects = draw_targets(IMAGE, classes, masks)
    assert color_at(objects, 4) != color_at(objects, 56) != [90] * 3
    regions = draw_targets(IMAGE, classes, masks, named(stuff_classes=["a", "b"]))
    assert color_at(regions, 4) == color_at(regions, 56)


def test_draw_targets_keeps_the_colour_of_an_object_over_frames() -> None:
    classes = torch.tensor([1, 1])
    both = draw_targets(IMAGE, classes, masks_of(slice(2, 18), slice(40, 58)))
    second = draw_targets(IMAGE, classes, masks_of(slice(0, 0), slice(40, 58)))
    assert color_at(both, 56) == color_at(second, 56)
    assert color_at(second, 4) == [90] * 3


def test_draw_targets_puts_small_things_over_large_ones() -> None:
    metadata = named(thing_dataset_id_to_contiguous_id={7: 0, 8: 1}, stuff_classes=["a", "b"])
    masks = masks_of(slice(20, 30), slice(2, 58))
    picture = draw_targets(IMAGE, torch.tensor([0, 1]), masks, metadata)
    assert color_at(picture, 22) != color_at(picture, 10)


def test_draw_targets_refuses_masks_of_another_size() -> None:
    with pytest.raises(InputError, match="expected the size of the image"):
        draw_targets(IMAGE, torch.tensor([0]), torch.zeros((1, 41, 60), dtype=torch.bool))


@pytest.mark.parametrize("count", (1, 3))
def test_join_frames_sets_them_side_by_side(count: int) -> None:
    frames = [np.full((10, 20, 3), value, dtype=np.uint8) for value in range(count)]
    joined = join_frames(frames)
    assert joined.shape == (10, count * 20 + (count - 1) * 8, 3)
    assert (joined[:, -20:] == count - 1).all()
