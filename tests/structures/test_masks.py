from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from mask2former.errors import DatasetError
from mask2former.structures import (
    BitMasks,
    PolygonMasks,
    bitmasks_to_rles,
    masks_to_boxes_xyxy,
    polygons_to_bitmask,
    segmentation_to_bitmask,
)


def _blob(height: int = 13, width: int = 17) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[3:9, 2:11] = True
    mask[5, 5] = False
    return mask


@pytest.mark.parametrize("num_masks", [0, 1, 3])
def test_bitmasks_to_rles_round_trips(num_masks: int) -> None:
    masks = torch.rand(num_masks, 13, 17) > 0.5
    rles = bitmasks_to_rles(masks)
    assert len(rles) == num_masks
    for rle, mask in zip(rles, masks.numpy(), strict=True):
        np.testing.assert_array_equal(segmentation_to_bitmask(rle, 13, 17), mask)
        assert rle["counts"] == coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


def test_segmentation_forms_are_interchangeable() -> None:
    polygon = [[2, 3, 11, 3, 11, 9, 2, 9]]
    bitmap = segmentation_to_bitmask(polygon, 13, 17)
    counts = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], bitmap.T.reshape(-1), [0]]))), prepend=0).tolist()
    uncompressed = {"size": [13, 17], "counts": [*counts, 13 * 17 - sum(counts)]}
    assert bitmap.sum() == 9 * 6
    for form in (uncompressed, bitmasks_to_rles(bitmap[None])[0], bitmap, bitmap.astype(np.uint8)):
        np.testing.assert_array_equal(segmentation_to_bitmask(form, 13, 17), bitmap)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4]], "at least 3 points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "an x and a y"),
        ([[1, 2, 3, 4, 5, float("nan")]], "finite"),
        ([1, 2, 3], "list of numbers"),
        ({"size": [13, 17]}, "'counts'"),
        ({"size": [13, 17], "counts": [5, 5]}, "sum to 10"),
        ({"size": [4, 4], "counts": [16]}, r"size \[4, 4\]"),
        (np.zeros((3, 3)), r"size \(3, 3\)"),
        ("polygon", "found 'polygon'"),
    ],
)
def test_segmentation_to_bitmask_names_what_is_wrong(segmentation: object, message: str) -> None:
    with pytest.raises(DatasetError, match=rf"annotation 7: .*{message}"):
        segmentation_to_bitmask(segmentation, 13, 17, context="annotation 7")


def test_masks_to_boxes_xyxy_bounds_the_pixels() -> None:
    masks = torch.zeros(3, 13, 17, dtype=torch.bool)
    masks[0] = torch.from_numpy(_blob())
    masks[2, 12, 16] = True
    expected = [[2.0, 3.0, 11.0, 9.0], [0.0] * 4, [16.0, 12.0, 17.0, 13.0]]
    assert masks_to_boxes_xyxy(masks).tolist() == expected
    assert masks_to_boxes_xyxy(masks[:0]).shape == (0, 4)


def test_polygon_masks_select_and_rasterise() -> None:
    polygons = PolygonMasks([[[2, 3, 11, 3, 11, 9, 2, 9]], [], [[0, 0, 4, 0, 4, 4], [8, 8, 12, 8, 12, 12]]])
    assert polygons.nonempty().tolist() == [True, False, True]
    assert polygons.get_bounding_boxes().tensor.tolist() == [[2, 3, 11, 9], [0, 0, 0, 0], [0, 0, 12, 12]]
    bitmaps = BitMasks.from_polygon_masks(polygons[polygons.nonempty()], 13, 17)
    assert len(bitmaps) == 2
    assert bitmaps.image_size == (13, 17)
    np.testing.assert_array_equal(bitmaps.tensor[1].numpy(), polygons_to_bitmask(polygons.polygons[2], 13, 17))
    assert BitMasks.from_polygon_masks(PolygonMasks([]), 13, 17).tensor.shape == (0, 13, 17)


@pytest.mark.parametrize("seed", range(60))
def test_polygons_to_bitmask_draws_what_pycocotools_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(5):
        height, width = (int(side) for side in rng.integers(1, 60, 2))
        polygons = []
        for _ in range(int(rng.integers(1, 4))):  # of all sizes, in the image, across its border and outside
            center = rng.uniform(-1, 2, 2) * (width, height)
            points = center + rng.normal(size=(int(rng.integers(3, 12)), 2)) * rng.choice([0.2, 3, 30, 200])
            polygons.append(points.round(1).reshape(-1).tolist())
        expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
        found = polygons_to_bitmask(polygons, height, width)
        assert found.dtype == bool
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, expected.astype(bool))
