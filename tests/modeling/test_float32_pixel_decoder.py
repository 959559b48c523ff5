"""The published pixel decoder trains in float32 where the rest is in float16: which types its parts compute in."""

from __future__ import annotations

import pytest
import torch

from mask2former.errors import ConfigError
from mask2former.modeling import build_model
from tests.parity import fixture_config, load_fixture, register_metadata


def mask_feature_type(option: str, dtype: torch.dtype, *, training: bool = True) -> torch.dtype:
    register_metadata()
    cfg = fixture_config(load_fixture("tiny_resnet_panoptic"))
    cfg.SOLVER.AMP.PIXEL_DECODER_FLOAT32 = option
    model = build_model(cfg).train(training)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        features = model.features(torch.rand(1, 3, 64, 64))
        assert features["res5"].dtype == dtype
        mask_features, *_ = model.sem_seg_head.pixel_decoder.forward_features(features)
    return mask_features.dtype


@pytest.mark.parametrize(
    ("option", "in_float16", "in_bfloat16"),
    [
        ("never", torch.float16, torch.bfloat16),
        ("float16", torch.float32, torch.bfloat16),
        ("always", torch.float32, torch.float32),
    ],
)
def test_pixel_decoder_trains_in_float32_as_the_option_says(
    option: str, in_float16: torch.dtype, in_bfloat16: torch.dtype
) -> None:
    assert mask_feature_type(option, torch.float16) == in_float16
    assert mask_feature_type(option, torch.bfloat16) == in_bfloat16
    assert mask_feature_type(option, torch.bfloat16, training=False) == torch.bfloat16


def test_unknown_option_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"PIXEL_DECODER_FLOAT32 must be one of never, float16, always, found 'yes'"):
        mask_feature_type("yes", torch.bfloat16)
