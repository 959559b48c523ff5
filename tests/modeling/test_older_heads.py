"""MaskFormer and the per-pixel baselines are the published ones: same weights, same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mask2former.modeling import build_model
from tests.parity import (
    CONFIG_DIR,
    Fixture,
    assert_close_to_peak,
    build_fixture_model,
    load_fixture,
    load_state_dict_reference,
)

MASK_FIXTURES = ("tiny_maskformer_v1", "tiny_maskformer_v1_encoder")
PIXEL_FIXTURES = ("tiny_per_pixel", "tiny_per_pixel_plus")
FIXTURES = (*MASK_FIXTURES, *PIXEL_FIXTURES)
VARIANTS: dict[str, tuple[str, list[Any]]] = {
    "variant_maskformer_v1_fpn": ("maskformer_R50_bs16_160k", []),
    "variant_maskformer_v1_transformer_encoder": ("maskformer_encoder_R50_bs16_160k", []),
    "variant_per_pixel_baseline": ("per_pixel_baseline_R50_bs16_160k", []),
    # The reference has as many queries as the other models, the recipe one for each class.
    "variant_per_pixel_baseline_plus": (
        "per_pixel_baseline_plus_R50_bs16_160k",
        ["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 100],
    ),
}


def fixture_batch(fixture: Fixture) -> list[dict[str, Any]]:
    height, width = fixture.array("input/output_size_0").tolist()
    return [{"image": fixture.tensor("input/image_0"), "height": height, "width": width}]


@pytest.mark.parametrize("name", FIXTURES)
def test_older_model_state_dict_names_and_shapes(name: str) -> None:
    fixture = load_fixture(name)
    state = build_fixture_model(fixture).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == fixture.state_dict_shapes()


@pytest.mark.parametrize("name", FIXTURES)
@torch.no_grad()
def test_older_head_outputs_match(name: str) -> None:
    fixture = load_fixture(name)
    model = build_fixture_model(fixture)
    images, _ = model.pad(fixture_batch(fixture))
    outputs = model.sem_seg_head(model.features(images))
    found: dict[str, Tensor] = {"head/sem_seg": outputs}
    if name in MASK_FIXTURES:
        layers = {"head/": outputs, **{f"head/aux_{i}/": aux for i, aux in enumerate(outputs["aux_outputs"])}}
        found = {prefix + key: layer[key] for prefix, layer in layers.items() for key in ("pred_logits", "pred_masks")}
    assert sorted(found) == fixture.keys("head/")
    for key, value in found.items():
        assert_close_to_peak(value, fixture.tensor(key))


@pytest.mark.parametrize("name", FIXTURES)
@torch.no_grad()
def test_older_model_results_match(name: str) -> None:
    fixture = load_fixture(name)
    (result,) = build_fixture_model(fixture)(fixture_batch(fixture))
    assert list(result) == ["sem_seg"]
    assert_close_to_peak(result["sem_seg"], fixture.tensor("result_0/sem_seg"))


@pytest.mark.parametrize("reference_name", VARIANTS)
def test_older_full_size_state_dict_matches(reference_name: str) -> None:
    from mask2former.config import get_cfg

    recipe, overrides = VARIANTS[reference_name]
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIG_DIR / "ade20k/semantic-segmentation" / f"{recipe}.yaml"))
    cfg.merge_from_list([*overrides, "MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        model = build_model(cfg)
    reference = load_state_dict_reference(reference_name)
    entries = {
        name: [list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in model.state_dict().items()
    }
    assert entries == reference["state_dict"]
    counts = [parameter.numel() for parameter in model.parameters()]
    assert sum(counts) == reference["num_parameters"]
    trainable = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    assert sum(trainable) == reference["num_trainable"]
