"""The per-pixel baselines: losses against labels or instances, results, and what they refuse."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.errors import ConfigError, DatasetError, InputError
from mask2former.modeling import SemanticSegmentor, build_model
from mask2former.modeling.losses import pixel_ce_loss
from mask2former.structures import Instances
from tests.parity import NUM_CLASSES, fixture_config, load_fixture, register_metadata

HEADS = ("tiny_per_pixel", "tiny_per_pixel_plus")
IGNORE = 255


def build_segmentor(name: str, *overrides: Any) -> SemanticSegmentor:
    register_metadata()
    cfg = fixture_config(load_fixture(name))
    cfg.merge_from_list(["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", NUM_CLASSES, *overrides])
    return build_model(cfg)


@pytest.fixture(params=HEADS)
def model(request: pytest.FixtureRequest) -> SemanticSegmentor:
    return build_segmentor(request.param)


def random_image(height: int, width: int) -> Tensor:
    return torch.randint(256, (3, height, width), dtype=torch.uint8)


def random_labels(height: int, width: int) -> Tensor:
    labels = torch.randint(NUM_CLASSES, (height, width))
    return labels.masked_fill(torch.rand(height, width) < 0.2, IGNORE)


def labels_to_instances(labels: Tensor) -> Instances:
    classes = labels[labels != IGNORE].unique()
    return Instances(tuple(labels.shape), gt_classes=classes, gt_masks=labels == classes[:, None, None])


def pixel_sample(labels: Tensor) -> dict[str, Any]:
    return {"image": random_image(*labels.shape), "sem_seg": labels}


def test_segmentor_losses_are_finite_and_reach_every_parameter(model: SemanticSegmentor) -> None:
    losses = model.train()([pixel_sample(random_labels(61, 93)), pixel_sample(random_labels(40, 50))])
    layers = len(model.sem_seg_head.predict(model.features(torch.zeros(1, 3, 64, 64))))
    assert list(losses) == ["loss_sem_seg", *(f"loss_sem_seg_{layer}" for layer in range(layers - 1))]
    sum(losses.values()).backward()
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_segmentor_without_any_label_loses_nothing_and_stays_connected(model: SemanticSegmentor) -> None:
    ignored = pixel_sample(torch.full((61, 45), IGNORE))
    empty = {
        "image": random_image(33, 64),
        "instances": Instances(
            (33, 64), gt_classes=torch.zeros(0, dtype=torch.long), gt_masks=torch.zeros(0, 33, 64, dtype=torch.bool)
        ),
    }
    losses = model.train()([ignored, empty])
    sum(losses.values()).backward()
    assert all(loss == 0 for loss in losses.values())
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_segmentor_learns_the_same_from_instances_as_from_labels(model: SemanticSegmentor) -> None:
    sample = pixel_sample(random_labels(45, 61))
    from_instances = {"image": sample["image"], "instances": labels_to_instances(sample["sem_seg"])}
    expected, found = model.train()([sample]), model([from_instances])
    assert {name: loss.item() for name, loss in found.items()} == {name: loss.item() for name, loss in expected.items()}


def test_segmentor_loss_is_the_mean_cross_entropy_times_its_weight() -> None:
    model = build_segmentor("tiny_per_pixel", "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", 0.5).train()
    sample = pixel_sample(random_labels(64, 96))
    images, _ = model.pad([sample])
    logits = model.sem_seg_head(model.features(images))
    expected = 0.5 * F.cross_entropy(logits, sample["sem_seg"][None], ignore_index=IGNORE)
    torch.testing.assert_close(model([sample])["loss_sem_seg"], expected)


def test_pixel_loss_of_a_batch_counts_pixels_not_images() -> None:
    logits, labels = torch.randn(2, 5, 8, 8), torch.full((2, 7, 6), -1)
    labels[0, 2, 3], labels[1, :, :2] = 4, 1
    chosen = logits[..., :7, :6].permute(0, 2, 3, 1)[labels >= 0]
    torch.testing.assert_close(pixel_ce_loss(logits, labels), F.cross_entropy(chosen, labels[labels >= 0]))


def test_segmentor_results_have_the_asked_size(model: SemanticSegmentor) -> None:
    batch = [{"image": random_image(61, 93), "height": 33, "width": 47}, {"image": random_image(80, 50)}]
    first, second = model.eval()(batch)
    assert first["sem_seg"].shape == (NUM_CLASSES, 33, 47)
    assert second["sem_seg"].shape == (NUM_CLASSES, 80, 50)
    assert first["sem_seg"].dtype == torch.float32
    assert not first["sem_seg"].requires_grad


def test_segmentor_trains_and_infers_under_bfloat16(model: SemanticSegmentor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.train()([pixel_sample(random_labels(64, 64))])
        (result,) = model.eval()([{"image": random_image(64, 64)}])
    sum(losses.values()).backward()
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert result["sem_seg"].dtype == torch.float32
    assert result["sem_seg"].isfinite().all()


@pytest.mark.parametrize("name", HEADS)
def test_segmentor_fits_one_image(name: str) -> None:
    model = build_segmentor(name).train()
    labels = torch.zeros(64, 64, dtype=torch.long)
    labels[:, 32:], labels[:4] = 3, IGNORE
    sample = pixel_sample(labels)
    sample["image"] = (labels == 3).expand(3, -1, -1).to(torch.uint8) * 200
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    losses = []
    for _ in range(36):
        optimizer.zero_grad()
        loss = sum(model([sample]).values())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_segmentor_names_what_is_wrong(model: SemanticSegmentor) -> None:
    image = {"image": random_image(64, 64), "file_name": "b.jpg"}
    with pytest.raises(InputError, match="found clips"):
        model([{"image": [random_image(64, 64)]}])
    model.train()
    with pytest.raises(DatasetError, match=r"b\.jpg: training needs 'sem_seg' or 'instances'"):
        model([image])
    with pytest.raises(DatasetError, match=r"b\.jpg: class ids must lie in 0\.\.8 .*found 0\.\.9"):
        model([{**image, "sem_seg": torch.arange(64 * 64).view(64, 64) % (NUM_CLASSES + 1)}])
    with pytest.raises(DatasetError, match=r"b\.jpg: masks of size \(80, 64\) exceed"):
        model([{**image, "sem_seg": torch.zeros(80, 64)}])
    with pytest.raises(DatasetError, match=r"b\.jpg: expected 'sem_seg' \(H, W\)"):
        model([{**image, "sem_seg": torch.zeros(1, 64, 64)}])


def test_queries_for_classes_must_suffice_for_training(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model = build_segmentor("tiny_per_pixel_plus", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", NUM_CLASSES - 1)
    assert "one query a class, and there are 9" in caplog.text
    with pytest.raises(ConfigError, match=r"NUM_OBJECT_QUERIES.*9, found 8"):
        model.train()([pixel_sample(random_labels(64, 64))])
