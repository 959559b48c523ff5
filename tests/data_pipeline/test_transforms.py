"""Augmentations: what they sample, and that image, labels, boxes and polygons stay together."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mask2former.data.transforms import (
    Augmentation,
    AugmentationList,
    ColorAugSSD,
    CropTransform,
    FixedSizeCrop,
    HFlipTransform,
    NoOpTransform,
    PadToDivisible,
    PadTransform,
    RandomCrop,
    RandomCropCategoryAreaConstraint,
    RandomFlip,
    RandomRotation,
    ResizeScale,
    ResizeShortestEdge,
    ResizeTransform,
    RotationTransform,
    SSDColorTransform,
    TransformList,
)
from mask2former.structures import polygons_to_bitmask

AUGMENTATIONS: list[Augmentation] = [
    ResizeShortestEdge((60, 90, 120), 160, "choice"),
    ResizeShortestEdge((50, 130), sample_style="range"),
    ResizeScale(0.7, 2.0, 96, 96),
    FixedSizeCrop((80, 64)),
    FixedSizeCrop((150, 170)),
    RandomCrop("relative_range", (0.5, 0.5)),
    RandomFlip(1.0),
    RandomFlip(1.0, horizontal=False, vertical=True),
    RandomRotation((-180, 180)),
    RandomRotation((-40, 40), expand=False, center=((0.4, 0.4), (0.6, 0.6))),
    PadToDivisible(32),
    AugmentationList([RandomFlip(), ResizeScale(0.5, 2.0, 100, 100), FixedSizeCrop((100, 100))]),
    AugmentationList(
        [
            ResizeShortestEdge((70, 110)),
            RandomRotation((-30, 30)),
            RandomCrop("absolute", (64, 64)),
        ]
    ),
]


def _draw_ellipse_like(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A convex polygon (P, 2) well inside the image, and its mask."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    points = np.stack([width * (0.5 + 0.3 * np.cos(angles)), height * (0.45 + 0.25 * np.sin(angles))], axis=1)
    return points, polygons_to_bitmask([points.reshape(-1)], height, width)


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    union = np.logical_or(first, second).sum()
    return 1.0 if union == 0 else float(np.logical_and(first, second).sum() / union)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=lambda a: type(a).__name__)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(height=st.integers(41, 120), width=st.integers(41, 120), seed=st.integers(0, 2**31))
def test_transform_moves_image_mask_polygon_and_box_alike(
    augmentation: Augmentation, height: int, width: int, seed: int
) -> None:
    points, mask = _draw_ellipse_like(height, width)
    image = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
    transform = augmentation.sample(np.random.default_rng(seed), (height, width))
    out_height, out_width = transform.output_size((height, width))

    moved_image = transform.apply_image(image)
    moved_mask = transform.apply_segmentation(mask, fill=0)
    moved_ids = transform.apply_segmentation(mask.astype(np.int32) * 70_000, fill=0)
    (polygon,) = transform.apply_polygons([points.reshape(-1)])

    assert moved_image.shape == (out_height, out_width, 3)
    assert moved_image.dtype == np.uint8
    assert moved_mask.shape == (out_height, out_width)
    assert moved_mask.dtype == bool
    assert np.array_equal(moved_ids == 70_000, moved_mask)
    rasterised = polygons_to_bitmask([polygon], out_height, out_width)
    assert _iou(rasterised, moved_mask) > 0.8 or rasterised.sum() < 60
    # Padding is grey, not white, so a threshold separates the shape.
    assert _iou(moved_image[..., 0] > 129, moved_mask) > 0.8 or moved_mask.sum() < 60

    box = np.concatenate([points.min(axis=0), points.max(axis=0)])
    x0, y0, x1, y1 = transform.apply_boxes(box[None])[0]
    rows, columns = np.nonzero(moved_mask)
    if len(rows):
        assert x0 - 1.5 <= columns.min()
        assert columns.max() + 1 <= x1 + 1.5
        assert y0 - 1.5 <= rows.min()
        assert rows.max() + 1 <= y1 + 1.5


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=lambda a: type(a).__name__)
def test_augmentation_same_generator_same_transform(augmentation: Augmentation) -> None:
    image = np.random.default_rng(0).integers(0, 256, (47, 61, 3)).astype(np.uint8)
    first, second = (augmentation.sample(np.random.default_rng(9), (47, 61)).apply_image(image) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    ("crop_type", "crop_size", "least", "most"),
    [
        ("relative", (0.5, 0.25), (20, 15), (20, 15)),
        ("relative_range", (0.5, 0.5), (20, 30), (40, 60)),
        ("absolute", (16, 100), (16, 60), (16, 60)),
        ("absolute_range", (10, 50), (10, 10), (40, 50)),
    ],
)
def test_random_crop_sizes(
    crop_type: str, crop_size: tuple[float, float], least: tuple[int, int], most: tuple[int, int]
) -> None:
    crop = RandomCrop(crop_type, crop_size)
    rng = np.random.default_rng(0)
    sizes = set()
    for _ in range(100):
        transform = crop.sample(rng, (40, 60))
        size = transform.output_size((40, 60))
        assert transform.apply_image(np.zeros((40, 60, 3), np.uint8)).shape[:2] == size
        assert least[0] <= size[0] <= most[0]
        assert least[1] <= size[1] <= most[1]
        assert 0 <= transform.left <= 60 - size[1]
        assert 0 <= transform.top <= 40 - size[0]
        sizes.add(size)
    assert (len(sizes) == 1) == (least == most)


def test_category_constraint_prefers_mixed_crops() -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[24:40, 24:40] = 1
    constrained = RandomCropCategoryAreaConstraint("absolute", (16, 16), single_category_max_area=0.9)
    free = RandomCropCategoryAreaConstraint("absolute", (16, 16))
    assert constrained.needs_sem_seg
    assert not free.needs_sem_seg

    def share_of_mixed(augmentation: Augmentation) -> float:
        rng = np.random.default_rng(0)
        crops = [augmentation.sample(rng, (64, 64), labels).apply_segmentation(labels) for _ in range(100)]
        return float(np.mean([len(np.unique(crop)) > 1 for crop in crops]))

    assert share_of_mixed(constrained) > 0.85
    assert share_of_mixed(free) < 0.6


def test_category_constraint_does_not_count_ignored_pixels() -> None:
    labels = np.full((32, 32), 255, np.uint8)
    labels[:16] = 3
    rng = np.random.default_rng(1)
    augmentation = RandomCropCategoryAreaConstraint(
        "absolute", (32, 32), single_category_max_area=0.75, ignored_category=255
    )
    assert not augmentation._accepts(labels)  # one class besides the ignored one
    labels[:6] = 4
    assert augmentation._accepts(labels)
    assert augmentation.sample(rng, (32, 32), labels).output_size((32, 32)) == (32, 32)


def test_augmentation_list_shows_transformed_labels() -> None:
    labels = np.zeros((20, 30), np.uint8)
    labels[:, :15] = 1

    class Probe(RandomFlip):
        needs_sem_seg = True
        seen: np.ndarray | None = None

        def sample(self, rng, size, sem_seg=None):  # type: ignore[no-untyped-def]
            Probe.seen = sem_seg
            return NoOpTransform()

    AugmentationList([RandomFlip(1.0), Probe()]).sample(np.random.default_rng(0), (20, 30), labels)
    assert Probe.seen is not None
    assert np.array_equal(Probe.seen, labels[:, ::-1])


def test_random_flip_probability() -> None:
    rng = np.random.default_rng(0)
    flips = [isinstance(RandomFlip().sample(rng, (4, 5)), HFlipTransform) for _ in range(400)]
    assert 0.4 < np.mean(flips) < 0.6


def test_resize_shortest_edge_zero_keeps_size() -> None:
    assert isinstance(ResizeShortestEdge(0).sample(np.random.default_rng(0), (7, 9)), NoOpTransform)


def test_resize_shortest_edge_choice_and_range_cover_lengths() -> None:
    rng = np.random.default_rng(0)
    chosen = {
        ResizeShortestEdge((3, 5), sample_style="choice").sample(rng, (10, 20)).output_size((10, 20))[0]
        for _ in range(50)
    }
    ranged = {
        ResizeShortestEdge((3, 5), sample_style="range").sample(rng, (10, 20)).output_size((10, 20))[0]
        for _ in range(90)
    }
    assert chosen == {3, 5}
    assert ranged == {3, 4, 5}


def test_resize_keeps_wide_ids_and_other_channel_counts() -> None:
    ids = np.array([[0, 16_777_215], [70_000, 65_536]], dtype=np.int32)
    transform = ResizeTransform(2, 2, 4, 6)
    assert np.array_equal(transform.apply_segmentation(ids), ids.repeat(2, axis=0).repeat(3, axis=1))
    wide = ids.astype(np.uint16)
    assert transform.apply_segmentation(wide).dtype == np.uint16
    grey = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
    assert transform.apply_image(grey).shape == (4, 6, 1)
    five = np.zeros((2, 2, 5), np.uint8)
    assert transform.apply_image(five).shape == (4, 6, 5)


def test_rotation_by_right_angles_is_exact() -> None:
    image = np.arange(5 * 8 * 3, dtype=np.uint8).reshape(5, 8, 3)
    ids = np.arange(40, dtype=np.int32).reshape(5, 8) * 1000
    transform = RotationTransform(5, 8, 90.0)
    assert transform.output_size((5, 8)) == (8, 5)
    assert np.array_equal(transform.apply_image(image), np.rot90(image))
    assert np.array_equal(transform.apply_segmentation(ids, fill=7), np.rot90(ids))
    corners = transform.apply_coords(np.array([[0.0, 0.0], [8.0, 5.0]]))
    assert np.allclose(corners, [[0.0, 8.0], [5.0, 0.0]])


def test_rotation_fills_labels_with_given_value() -> None:
    transform = RotationTransform(20, 20, 45.0)
    for dtype, fill in ((np.uint8, 255), (np.int32, 70_001), (np.uint16, 65_535)):
        rotated = transform.apply_segmentation(np.ones((20, 20), dtype), fill=fill)
        assert rotated.dtype == dtype
        assert set(np.unique(rotated)) == {1, fill}
        assert rotated[0, 0] == fill


def test_random_rotation_choice_takes_listed_angles() -> None:
    augmentation = RandomRotation((0, 90, 180), sample_style="choice", center=((0.5, 0.5),), expand=False)
    rng = np.random.default_rng(0)
    angles = {getattr(augmentation.sample(rng, (9, 9)), "angle", 0.0) for _ in range(50)}
    assert angles == {0.0, 90.0, 180.0}


def test_pad_to_divisible_never_crops() -> None:
    transform = PadToDivisible(32).sample(np.random.default_rng(0), (33, 64))
    assert transform == PadTransform(0, 0, 0, 31)
    assert transform.apply_image(np.zeros((33, 64, 3), np.uint8))[40, 0].tolist() == [128, 128, 128]


def _convert(values: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    return np.clip(values.astype(np.float32) * np.float32(alpha) + np.float32(beta), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("is_rgb", [False, True])
@pytest.mark.parametrize("contrast_first", [False, True])
def test_ssd_color_equals_stepwise_formulation(is_rgb: bool, contrast_first: bool) -> None:
    image = np.random.default_rng(3).integers(0, 256, (17, 23, 3)).astype(np.uint8)
    transform = SSDColorTransform(-20.5, 1.31, 0.6, -11, contrast_first, is_rgb)
    expected = _convert(image[..., ::-1] if is_rgb else image, 1.0, -20.5)
    if contrast_first:
        expected = _convert(expected, 1.31, 0)
    hsv = cv2.cvtColor(expected, cv2.COLOR_BGR2HSV)
    hsv[..., 1] = _convert(hsv[..., 1], 0.6, 0)
    hsv = cv2.cvtColor(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR), cv2.COLOR_BGR2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(int) - 11) % 180
    expected = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if not contrast_first:
        expected = _convert(expected, 1.31, 0)
    assert np.array_equal(transform.apply_image(image), expected[..., ::-1] if is_rgb else expected)


def test_color_aug_ssd_leaves_labels_and_grey_images() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (8, 8, 1)).astype(np.uint8)
    labels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    rng = np.random.default_rng(0)
    taken = np.zeros(4)
    for _ in range(200):
        transform = ColorAugSSD("BGR").sample(rng, (8, 8))
        assert isinstance(transform, SSDColorTransform)
        taken += [
            v is not None for v in (transform.brightness, transform.contrast, transform.saturation, transform.hue)
        ]
        assert transform.apply_segmentation(labels) is labels
        assert transform.apply_image(grey) is grey
    assert np.all((taken > 70) & (taken < 130))


def test_transform_list_applies_in_order() -> None:
    transform = TransformList([CropTransform(2, 1, 4, 3), HFlipTransform(4), PadTransform(1, 0, 0, 2)])
    image = np.arange(5 * 7, dtype=np.uint8).reshape(5, 7)
    assert transform.output_size((5, 7)) == (5, 5)
    assert np.array_equal(transform.apply_image(image)[:3, 1:], image[1:4, 2:6][:, ::-1])
    assert transform.apply_coords(np.array([[2.0, 1.0]])).tolist() == [[5.0, 0.0]]
    assert transform.apply_boxes(np.zeros((0, 4))).shape == (0, 4)


@pytest.mark.parametrize(
    "build",
    [
        lambda: RandomCrop("absolutely", (1, 1)),
        lambda: RandomCrop("relative", (1.5, 0.5)),
        lambda: RandomCrop("absolute_range", (9, 3)),
        lambda: RandomCrop("absolute", (0, 3)),
        lambda: ResizeShortestEdge((1, 2, 3), sample_style="range"),
        lambda: ResizeShortestEdge((1, 2), sample_style="sometimes"),
        lambda: ResizeShortestEdge(()),
        lambda: ResizeScale(0.0, 1.0, 8, 8),
        lambda: RandomFlip(horizontal=True, vertical=True),
        lambda: RandomRotation((1.0,)),
        lambda: RandomRotation((1.0,), sample_style="often"),
        lambda: PadToDivisible(0),
    ],
)
def test_augmentation_refuses_wrong_parameters(build) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="found"):
        build()


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, bool])
@pytest.mark.parametrize("seed", range(12))
def test_resize_then_crop_in_one_step_is_the_same(seed: int, dtype: type) -> None:
    rng = np.random.default_rng(seed)
    height, width, new_height, new_width = (int(side) for side in rng.integers(1, 60, 4))
    top, left = int(rng.integers(new_height)), int(rng.integers(new_width))
    resize = ResizeTransform(height, width, new_height, new_width)
    crop = CropTransform(left, top, int(rng.integers(1, 70)), int(rng.integers(1, 70)))
    both = TransformList([NoOpTransform(), resize, TransformList([crop])])
    for shape in ((height, width), (height, width, 3), (height, width, 1)):
        array = rng.integers(0, 2 if dtype is bool else 256, shape).astype(dtype)
        expected = crop.apply_image(resize.apply_image(array))
        assert expected.dtype == dtype
        assert np.array_equal(both.apply_image(array), expected)
        expected = crop.apply_image(resize.apply_segmentation(array))
        assert np.array_equal(both.apply_segmentation(array), expected)
    assert both.output_size((height, width)) == expected.shape[:2]


@pytest.mark.parametrize("seed", range(6))
def test_resize_segmentation_takes_the_pixels_of_pillow(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width, new_height, new_width = (int(side) for side in rng.integers(1, 90, 4))
    ids = rng.integers(0, 1 << 24, (height, width)).astype(np.int32)
    expected = Image.fromarray(ids).resize((new_width, new_height), Image.Resampling.NEAREST)
    found = ResizeTransform(height, width, new_height, new_width).apply_segmentation(ids)
    assert np.array_equal(found, np.asarray(expected))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, bool])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (1, 1)])
def test_flip_keeps_type_and_shape(shape: tuple[int, ...], dtype: type) -> None:
    array = np.random.default_rng(0).integers(0, 250, shape).astype(dtype)
    for flipped in (HFlipTransform(shape[1]).apply_image(array), HFlipTransform(shape[1]).apply_segmentation(array)):
        assert flipped.dtype == array.dtype
        assert np.array_equal(flipped, array[:, ::-1])
