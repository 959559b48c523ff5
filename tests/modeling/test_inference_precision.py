"""MODEL.PRECISION: what is computed in bfloat16 and what stays float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.errors import ConfigError
from mask2former.modeling import build_model
from mask2former.modeling.execution import parse_precision
from mask2former.structures import Instances
from tests.parity import NUM_CLASSES, assert_close_to_peak, fixture_config, load_fixture, register_metadata


def build_tiny(backbone: str = "resnet", *overrides: Any) -> Any:
    register_metadata()
    cfg = fixture_config(load_fixture(f"tiny_{backbone}_panoptic"))
    cfg.merge_from_list(["MODEL.MASK_FORMER.DEC_LAYERS", 3, "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 32, *overrides])
    return build_model(cfg)


def random_image(height: int = 61, width: int = 93) -> Tensor:
    return torch.randint(256, (3, height, width), dtype=torch.uint8)


def test_parse_precision_names_what_is_wrong() -> None:
    assert parse_precision("float32") is None
    assert parse_precision("float16", torch.device("cuda")) is torch.float16
    with pytest.raises(ConfigError, match=r"MODEL\.PRECISION: expected one of float32, bfloat16, float16; found 'fp8'"):
        build_tiny("resnet", "MODEL.PRECISION", "fp8")
    with pytest.raises(ConfigError, match=r"MODEL\.PRECISION: float16 is for CUDA"):
        build_tiny("resnet", "MODEL.PRECISION", "float16")


@pytest.mark.parametrize("backbone", ["resnet", "swin"])
def test_bfloat16_inference_gives_float32_results_near_those_of_float32(backbone: str) -> None:
    plain, fast = build_tiny(backbone).eval(), build_tiny(backbone, "MODEL.PRECISION", "bfloat16").eval()
    fast.load_state_dict(plain.state_dict())
    sample = {"image": random_image(), "height": 40, "width": 50}
    (expected,), (found,) = plain([sample]), fast([sample])
    assert found["sem_seg"].dtype == torch.float32
    assert found["instances"].scores.dtype == torch.float32
    assert_close_to_peak(found["sem_seg"], expected["sem_seg"], tolerance=0.1)
    assert fast.predict(torch.randn(1, 3, 64, 64))[-1].class_logits.dtype == torch.bfloat16


def test_bfloat16_clips_are_predicted_in_bfloat16() -> None:
    model = build_tiny("resnet", "MODEL.PRECISION", "bfloat16").eval()
    clip = {"image": [random_image(64, 64) for _ in range(3)]}
    with torch.no_grad():
        prediction, _ = model._predict_clip(clip)
    assert prediction.class_logits.dtype == torch.bfloat16
    assert all(masks.shape == (3, 64, 64) for masks in model([clip])[0]["pred_masks"])


def test_precision_of_inference_leaves_training_alone() -> None:
    model = build_tiny("resnet", "MODEL.PRECISION", "bfloat16").train()
    images = torch.randn(1, 3, 64, 64)
    assert model.predict(images)[-1].class_logits.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.predict(images)[-1].class_logits.dtype == torch.bfloat16


def test_islands_of_float32_in_bfloat16_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places and weights of deformable attention, attention's and matching's softmax, losses, gradients."""
    model, seen = build_tiny("resnet").train(), {}

    def watch(owner: Any, name: str, key: str, pick: Callable[..., Tensor]) -> None:
        original = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            seen.setdefault(key, set()).add(pick(*args, **kwargs).dtype)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    from mask2former.modeling import losses as mask_losses
    from mask2former.modeling import matcher
    from mask2former.modeling.pixel_decoder import deformable_encoder
    from mask2former.ops import deformable_attention

    watch(deformable_encoder, "ms_deform_attn_fused", "values", lambda value, *_, **__: value)
    watch(deformable_attention, "ms_deform_attn", "locations", lambda _, __, locations, ___: locations)
    watch(deformable_attention, "ms_deform_attn", "weights", lambda _, __, ___, weights: weights)
    watch(deformable_attention, "_softmax_over_few", "softmax of points", lambda logits: logits)
    watch(F, "scaled_dot_product_attention", "softmax of attention on a CPU", lambda query, *_, **__: query)
    watch(model.criterion, "_match", "class logits", lambda predictions, _: predictions[0].class_logits)
    for cost in ("class_costs", "sigmoid_ce_costs", "dice_costs"):
        watch(matcher, cost, cost, lambda logits, *_, **__: logits)
    watch(mask_losses, "sigmoid_ce_losses", "mask loss", lambda logits, *_, **__: logits)
    watch(mask_losses, "dice_losses", "dice loss", lambda logits, *_, **__: logits)
    watch(F, "cross_entropy", "class loss", lambda logits, *_, **__: logits)
    classes, masks = torch.randint(NUM_CLASSES, (2,)), torch.rand(2, 64, 64) > 0.5
    sample = {"image": random_image(64, 64), "instances": Instances((64, 64), gt_classes=classes, gt_masks=masks)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model([sample])
    sum(losses.values()).backward()
    half = {"values", "class logits"}
    assert {key: dtypes for key, dtypes in seen.items() if key in half} == {key: {torch.bfloat16} for key in half}
    assert {key: dtypes for key, dtypes in seen.items() if dtypes != {torch.float32}}.keys() == half
    assert len(seen) == 12
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}
