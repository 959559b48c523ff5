"""Operations are counted by module for every meta-architecture, with the operators that fvcore does not know."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from mask2former.commands.analysis import Counts, count_activations, count_flops, frames_of, random_sample, usual_size
from mask2former.config import get_cfg
from mask2former.errors import ConfigError
from tests.parity import build_fixture_model, fixture_config, load_fixture

FIXTURES = (
    "tiny_resnet_panoptic",
    "tiny_swin_panoptic",
    "tiny_maskformer_v1",
    "tiny_maskformer_v1_encoder",
    "tiny_per_pixel",
    "tiny_per_pixel_plus",
)
ADDED = ("aten::scaled_dot_product_attention", "mask2former::ms_deform_attn")


@pytest.mark.parametrize(
    ("name", "count"), [*((name, count_flops) for name in FIXTURES), (FIXTURES[0], count_activations)]
)
def test_count_covers_every_model(name: str, count: Callable[..., Counts]) -> None:
    model = build_fixture_model(load_fixture(name))
    counts = count(model, torch.zeros(1, 3, 64, 64))
    parts = counts.by_module["backbone"] + counts.by_module["sem_seg_head"]
    assert 0 < parts <= counts.by_module[""]
    assert counts.by_module["backbone"] > 0
    assert counts.by_module["sem_seg_head.pixel_decoder"] > 0
    assert sum(counts.by_operator.values()) == counts.by_module[""]
    assert not set(ADDED) & set(counts.uncounted)
    assert "aten::add" in counts.uncounted


def test_count_of_added_operators_is_that_of_their_formulas() -> None:
    fixture = load_fixture("tiny_resnet_panoptic")
    cfg, model = fixture_config(fixture), build_fixture_model(fixture)
    counts = count_flops(model, torch.zeros(1, 3, 64, 96))
    levels = [(64 // stride) * (96 // stride) for stride in (32, 16, 8)]
    head, mask_former = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    samples = sum(levels) * head.CONVS_DIM * len(levels) * 4  # points of each level
    assert counts.by_operator["ms_deform_attn"] == 5 * samples * head.TRANSFORMER_ENC_LAYERS
    queries, channels, layers = mask_former.NUM_OBJECT_QUERIES, mask_former.HIDDEN_DIM, mask_former.DEC_LAYERS - 1
    tokens = sum(levels[layer % 3] for layer in range(layers))
    attention = 2 * queries * channels * (tokens + layers * queries)  # scores, and their product with values
    assert counts.by_operator["scaled_dot_product_attention"] == attention


def test_count_of_convolutions_grows_with_the_area() -> None:
    model = build_fixture_model(load_fixture("tiny_resnet_panoptic"))
    model.train()
    small, large = (count_flops(model, torch.zeros(1, 3, 64 * n, 64)).by_module["backbone.stem"] for n in (1, 3))
    assert large == 3 * small
    assert model.training


def test_count_of_a_clip_is_that_of_its_frames_in_the_backbone() -> None:
    model = build_fixture_model(load_fixture("tiny_video"))
    image = count_flops(model, torch.zeros(1, 3, 64, 64))
    clip = count_flops(model, torch.zeros(3, 3, 64, 64), num_frames=3)
    # Not exactly: where an area is large enough, frozen norms are folded into their convolutions.
    assert clip.by_module["backbone"] == pytest.approx(3 * image.by_module["backbone"], rel=0.02)
    assert clip.by_module["sem_seg_head.predictor"] < 3 * image.by_module["sem_seg_head.predictor"]


def test_count_refuses_a_model_of_other_parts() -> None:
    with pytest.raises(ConfigError, match="not Linear"):
        count_flops(nn.Linear(1, 1), torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("num_frames", (None, 1, 3))
@pytest.mark.parametrize("num_objects", (0, 5))
def test_random_sample_is_what_a_mapper_yields(num_frames: int | None, num_objects: int) -> None:
    cfg = get_cfg()
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
    sample = random_sample(cfg, (33, 47), num_frames=num_frames, num_objects=num_objects)
    images = [sample["image"]] if num_frames is None else sample["image"]
    targets = [sample["instances"]] if num_frames is None else sample["instances"]
    assert len(images) == len(targets) == (num_frames or 1)
    assert {tuple(image.shape) for image in images} == {(3, 33, 47)}
    assert targets[0].gt_masks.shape == (num_objects, 33, 47)
    assert targets[0].gt_masks.flatten(1).any(dim=1).all()
    assert ((targets[0].gt_classes >= 0) & (targets[0].gt_classes < 3)).all()


def test_usual_size_and_frames_follow_the_config() -> None:
    cfg = get_cfg()
    assert usual_size(cfg) == (800, 1067)
    assert frames_of(cfg) is None
    cfg.MODEL.META_ARCHITECTURE = "VideoMaskFormer"
    assert frames_of(cfg) == 2
