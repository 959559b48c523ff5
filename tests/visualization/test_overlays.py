from __future__ import annotations

import numpy as np
import pytest
import torch

from mask2former.errors import InputError
from mask2former.structures import Boxes, Instances, Metadata, masks_to_boxes_xyxy
from mask2former.visualization import Style, class_name, color_of_class, draw_instances, draw_panoptic, draw_semantic
from mask2former.visualization.canvas import MAX_ENLARGEMENT, MIN_CANVAS_SIDE, canvas_scale, class_color, instance_color


@pytest.fixture
def metadata() -> Metadata:
    return Metadata("drawn", thing_classes=["cat", "dog"], stuff_classes=["cat", "dog", "sky"])


def make_instances(masks: torch.Tensor, scores: list[float], classes: list[int]) -> Instances:
    return Instances(
        tuple(masks.shape[1:]),
        pred_masks=masks,
        scores=torch.tensor(scores),
        pred_classes=torch.tensor(classes, dtype=torch.int64),
        pred_boxes=Boxes(masks_to_boxes_xyxy(masks)),
    )


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, dtype=np.uint8)


def panoptic_halves(height: int, width: int) -> tuple[torch.Tensor, list[dict]]:
    ids = torch.zeros(height, width, dtype=torch.int32)
    ids[: height // 2] = 1
    ids[height // 2 :, : width // 2] = 7
    return ids, [
        {"id": 1, "category_id": 2, "isthing": False, "score": 0.9},
        {"id": 7, "category_id": 0, "isthing": True, "score": 0.8},
    ]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 13), (61, 97), (700, 650)])
def test_draw_panoptic_any_size_keeps_aspect(height: int, width: int, metadata: Metadata) -> None:
    picture = draw_panoptic(grey(height, width), panoptic_halves(height, width), metadata)
    scale = canvas_scale(height, width)
    assert picture.dtype == np.uint8
    assert picture.shape == (round(height * scale), round(width * scale), 3)


def test_canvas_scale_enlarges_small_images_only() -> None:
    assert canvas_scale(128, 128) == pytest.approx(MIN_CANVAS_SIDE / 128)
    assert canvas_scale(2, 2) == MAX_ENLARGEMENT
    assert canvas_scale(1080, 1920) == 1.0


def test_draw_panoptic_void_stays_and_segments_change(metadata: Metadata) -> None:
    image = grey(800, 800)
    picture = draw_panoptic(image, panoptic_halves(800, 800), metadata)
    assert (picture[420:, 500:] == 128).all()
    expected = 0.5 * 128 + 0.5 * color_of_class(metadata, 0).astype(float)
    assert np.abs(picture[780, 20].astype(float) - expected).max() <= 1


def test_draw_panoptic_empty_result_is_the_image(metadata: Metadata) -> None:
    image = np.random.default_rng(0).integers(0, 256, (610, 640, 3), dtype=np.uint8)
    assert np.array_equal(draw_panoptic(image, (torch.zeros(610, 640, dtype=torch.int32), []), metadata), image)


def test_draw_panoptic_does_not_write_into_its_input(metadata: Metadata) -> None:
    image = grey(640, 640)
    draw_panoptic(image, panoptic_halves(640, 640), metadata)
    assert (image == 128).all()


def test_draw_panoptic_segment_without_pixels_is_skipped(metadata: Metadata) -> None:
    image = grey(640, 640)
    infos = [{"id": 3, "category_id": 0, "isthing": True}]
    assert np.array_equal(draw_panoptic(image, (torch.zeros(640, 640, dtype=torch.int32), infos), metadata), image)


def test_draw_panoptic_instances_of_one_class_differ_in_colour(metadata: Metadata) -> None:
    ids = torch.zeros(640, 640, dtype=torch.int32)
    ids[:300, :300], ids[340:, 340:] = 1, 2
    infos = [{"id": i, "category_id": 1, "isthing": True} for i in (1, 2)]
    picture = draw_panoptic(grey(640, 640), (ids, infos), metadata).astype(int)
    assert np.abs(picture[20, 20] - picture[620, 620]).max() > 8


def test_draw_instances_threshold_hides_worse_ones(metadata: Metadata) -> None:
    masks = torch.zeros(2, 640, 640, dtype=torch.bool)
    masks[0, :200], masks[1, 440:] = True, True
    picture = draw_instances(grey(640, 640), make_instances(masks, [0.9, 0.3], [0, 1]), metadata, score_threshold=0.5)
    assert (picture[450:] == 128).all()
    assert (picture[10, 10] != 128).any()


def test_draw_instances_empty_is_the_image(metadata: Metadata) -> None:
    empty = make_instances(torch.zeros(0, 640, 640, dtype=torch.bool), [], [])
    assert np.array_equal(draw_instances(grey(640, 640), empty, metadata), grey(640, 640))


def test_draw_instances_better_lies_above_worse(metadata: Metadata) -> None:
    masks = torch.zeros(2, 640, 640, dtype=torch.bool)
    masks[0, 100:500, 100:500] = True
    masks[1] = True
    both = draw_instances(grey(640, 640), make_instances(masks, [0.2, 0.9], [0, 1]), metadata)
    worse_first = draw_instances(grey(640, 640), make_instances(masks.flip(0), [0.9, 0.2], [1, 0]), metadata)
    assert np.array_equal(both, worse_first)


def test_draw_semantic_scores_and_labels_agree(metadata: Metadata) -> None:
    labels = torch.zeros(640, 640, dtype=torch.int64)
    labels[:300], labels[300:, :100] = 1, 2
    scores = torch.nn.functional.one_hot(labels, 3).permute(2, 0, 1).float()
    from_scores = draw_semantic(grey(640, 640), scores, metadata)
    assert np.array_equal(from_scores, draw_semantic(grey(640, 640), labels, metadata))


def test_draw_semantic_ignore_label_stays() -> None:
    metadata = Metadata("drawn", stuff_classes=["sky"], ignore_label=255)
    labels = np.zeros((640, 640), dtype=np.uint8)
    labels[320:] = 255
    picture = draw_semantic(grey(640, 640), labels, metadata)
    assert (picture[330:] == 128).all()
    assert (picture[:300] != 128).any()


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_draw_panoptic_wrong_image_is_named(image: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"expected \(H, W, 3\) uint8 RGB"):
        draw_panoptic(image, (torch.zeros(4, 4), []))


def test_draw_panoptic_wrong_size_is_named() -> None:
    with pytest.raises(InputError, match=r"\(8, 8\), found \(4, 4\)"):
        draw_panoptic(grey(8, 8), (torch.zeros(4, 4), []))


def test_class_name_without_metadata_is_a_number(metadata: Metadata) -> None:
    assert class_name(None, 3) == "class 3"
    assert class_name(metadata, 9) == "class 9"
    assert class_name(metadata, 2) == "sky"
    assert class_name(Metadata("things", thing_classes=["cat"]), 0) == "cat"


def test_color_of_class_prefers_the_data_set() -> None:
    metadata = Metadata("coloured", stuff_classes=["a"], stuff_colors=[[1, 2, 3]])
    assert color_of_class(metadata, 0).tolist() == [1, 2, 3]
    assert color_of_class(metadata, 1).tolist() == class_color(1).tolist()


def test_class_colors_are_distinct() -> None:
    colors = np.stack([class_color(i) for i in range(30)]).astype(int)
    difference = np.abs(colors[:, None] - colors[None]).sum(axis=2) + 1000 * np.eye(30, dtype=int)
    assert difference.min() >= 12


def test_instance_colors_are_distinct_and_start_at_the_class() -> None:
    base = class_color(4)
    colors = np.stack([instance_color(base, i) for i in range(9)]).astype(int)
    assert colors[0].tolist() == base.tolist()
    difference = np.abs(colors[:, None] - colors[None]).sum(axis=2) + 1000 * np.eye(9, dtype=int)
    assert difference.min() >= 10


def test_style_sets_fill_labels_and_outlines() -> None:
    image = np.full((600, 600, 3), 128, dtype=np.uint8)
    ids = np.zeros((600, 600), dtype=np.int32)
    ids[100:500, 100:500] = 1
    result = ids, [{"id": 1, "category_id": 0, "isthing": True, "score": 0.9}]
    pictures = {
        name: draw_panoptic(image, result, style=style)
        for name, style in {
            "usual": Style(),
            "opaque": Style(alpha=1.0, labels=False),
            "contours": Style(contours=True, labels=False),
            "small text": Style(label_size=0.5),
            "no labels": Style(labels=False),
        }.items()
    }
    inside = np.s_[150:200, 150:200]
    assert (pictures["opaque"][inside] == class_color(0)).all()
    assert (pictures["contours"][inside] == 128).all()
    assert (pictures["contours"][:, 100:104] != 128).any()
    labelled = {
        name: int((pictures[name] != pictures["no labels"]).any(axis=2).sum()) for name in ("usual", "small text")
    }
    assert 0 < labelled["small text"] < 0.5 * labelled["usual"]


@pytest.mark.parametrize(("options", "message"), [({"alpha": 1.5}, "alpha"), ({"label_size": 0.0}, "label size")])
def test_style_out_of_range_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=f"{message}: expected"):
        Style(**options)
