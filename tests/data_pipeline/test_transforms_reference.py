"""Resizing and cropping against values of the published pipeline, bit by bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mask2former.data.transforms import (
    FixedSizeCrop,
    ResizeScale,
    ResizeShortestEdge,
    ResizeTransform,
)
from mask2former.structures import rgb_to_id

REFERENCE = Path(__file__).parents[1] / "data" / "reference" / "transforms.npz"


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(REFERENCE) as archive:
        return {key: archive[key] for key in archive.files}


@pytest.mark.parametrize("case", range(4))
def test_resize_transform_reference(reference: dict[str, np.ndarray], case: int) -> None:
    image, seg, pan_rgb = reference["image"], reference["seg"], reference["pan_rgb"]
    new_height, new_width = (int(side) for side in reference[f"resize_{case}/size"])
    transform = ResizeTransform(*image.shape[:2], new_height, new_width)
    assert np.array_equal(transform.apply_image(image), reference[f"resize_{case}/image"])
    assert np.array_equal(transform.apply_segmentation(seg), reference[f"resize_{case}/seg"])
    assert np.array_equal(transform.apply_segmentation(pan_rgb), reference[f"resize_{case}/pan_rgb"])
    assert np.array_equal(
        transform.apply_segmentation(rgb_to_id(pan_rgb)), rgb_to_id(reference[f"resize_{case}/pan_rgb"])
    )
    assert transform.output_size(image.shape[:2]) == (new_height, new_width)


def test_resize_shortest_edge_sizes(reference: dict[str, np.ndarray]) -> None:
    table = reference["resize_shortest_edge_h_w_short_max_newh_neww"].tolist()
    assert len(table) > 20
    for height, width, length, max_size, new_height, new_width in table:
        augmentation = ResizeShortestEdge(length, max_size)
        transform = augmentation.sample(np.random.default_rng(0), (height, width))
        assert transform.output_size((height, width)) == (new_height, new_width)


def test_resize_scale_sizes(reference: dict[str, np.ndarray]) -> None:
    for height, width, scale, new_height, new_width in reference["resize_scale_1024_h_w_scale_newh_neww"].tolist():
        augmentation = ResizeScale(scale, scale, target_height=1024, target_width=1024)
        transform = augmentation.sample(np.random.default_rng(0), (int(height), int(width)))
        assert transform.output_size((int(height), int(width))) == (new_height, new_width)


def test_fixed_size_crop_reference(reference: dict[str, np.ndarray]) -> None:
    image, seg = reference["image"], reference["seg"]
    params = str(reference["fixed_size_crop/params"])
    assert "'x0': 7, 'y0': 0" in params
    transform = FixedSizeCrop((48, 40)).at(image.shape[:2], top=0, left=7)
    assert np.array_equal(transform.apply_image(image), reference["fixed_size_crop/image"])
    assert np.array_equal(transform.apply_segmentation(seg), reference["fixed_size_crop/seg"])
    assert transform.output_size(image.shape[:2]) == (48, 40)


def test_fixed_size_crop_places_window_by_one_number() -> None:
    rng = np.random.default_rng(5)
    place = np.random.default_rng(5).random()
    transform = FixedSizeCrop((10, 10)).sample(rng, (110, 60))
    points = transform.apply_coords(np.array([[0.0, 0.0]]))
    assert points.tolist() == [[-round(50 * place), -round(100 * place)]]
