from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.config import get_cfg
from mask2former.errors import ConfigError
from mask2former.modeling.registry import TRANSFORMER_DECODER_REGISTRY
from mask2former.modeling.transformer_decoder import MultiScaleMaskedTransformerDecoder
from mask2former.modeling.transformer_decoder.attention import MultiheadAttention
from mask2former.modeling.transformer_decoder.masked_decoder import attention_mask, resize_to_tokens

SIZES = [(3, 4), (6, 7), (11, 14)]  # odd: no level is an exact half of the next


def build_decoder(**changes: Any) -> MultiScaleMaskedTransformerDecoder:
    options = {
        "num_classes": 5,
        "hidden_dim": 16,
        "num_queries": 7,
        "nheads": 4,
        "dim_feedforward": 24,
        "dec_layers": 4,
        "pre_norm": False,
        "mask_dim": 8,
    }
    return MultiScaleMaskedTransformerDecoder(16, **{**options, **changes}).eval()


def random_inputs(batch: int, frames: int = 1) -> tuple[list[Tensor], Tensor]:
    return [torch.randn(batch * frames, 16, *size) for size in SIZES], torch.randn(batch * frames, 8, 22, 27)


@pytest.mark.parametrize("frames", [1, 3])
def test_attention_mask_equals_that_of_shrunk_full_masks(frames: int) -> None:
    embed, features = torch.randn(2, 7, 8), torch.randn(2, frames, 8, 22, 27)
    full = torch.einsum("bqc,btchw->bqthw", embed, features)
    for size in SIZES:
        shrunk = F.interpolate(full.flatten(1, 2), size=size, mode="bilinear", align_corners=False)
        attend = shrunk.unflatten(1, (7, frames)).flatten(2).sigmoid() >= 0.5
        attend = attend | ~attend.any(-1, keepdim=True)
        found = attention_mask(embed, resize_to_tokens(features, size))
        assert found.shape == (2, 1, 7, frames * size[0] * size[1])
        assert torch.equal(found[:, 0], attend)


def test_transformer_decoder_empty_masks_attend_all() -> None:
    features = torch.ones(1, 3, 10)
    embed = torch.tensor([[[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]])
    mask = attention_mask(embed, features)
    assert mask.all()
    half = torch.cat((features, -features), dim=2)
    assert attention_mask(embed, half)[0, 0].sum(-1).tolist() == [10, 10, 20]


def test_attention_equals_that_of_torch() -> None:
    reference = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    attention = MultiheadAttention(16, 4)
    attention.load_state_dict(reference.state_dict())
    query, key, value = torch.randn(2, 5, 16), torch.randn(2, 9, 16), torch.randn(2, 9, 16)
    mask = torch.rand(2, 1, 5, 9) > 0.5
    mask[..., 0] = True
    blocked = ~mask.expand(-1, 4, -1, -1).flatten(0, 1)
    expected, _ = reference(query, key, value, attn_mask=blocked, need_weights=False)
    torch.testing.assert_close(attention(query, key, value, mask), expected)


def test_attention_refuses_channels_that_heads_do_not_divide() -> None:
    with pytest.raises(ValueError, match="10 channels, 4 heads"):
        MultiheadAttention(10, 4)


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("frames", [1, 2])
def test_transformer_decoder_predicts_before_and_after_each_layer(frames: int, pre_norm: bool) -> None:
    maps, mask_features = random_inputs(2, frames)
    predictions = build_decoder(pre_norm=pre_norm)(maps, mask_features, num_frames=frames)
    assert len(predictions) == 5
    for prediction in predictions:
        assert prediction.class_logits.shape == (2, 7, 6)
        assert prediction.mask_logits().shape == (2, 7, frames, 22, 27)
    first = predictions[0].class_logits
    torch.testing.assert_close(first[0], first[1])  # before the first layer queries have seen no image
    assert not torch.allclose(predictions[-1].class_logits[0], predictions[-1].class_logits[1])


def test_transformer_decoder_batch_decodes_as_its_single_images_do() -> None:
    decoder = build_decoder()
    maps, mask_features = random_inputs(3)
    together = decoder(maps, mask_features)[-1].class_logits
    for index in range(3):
        alone = decoder([m[index : index + 1] for m in maps], mask_features[index : index + 1])[-1].class_logits
        torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-4, atol=1e-5)


def test_transformer_decoder_sees_the_order_of_frames() -> None:
    decoder = build_decoder()
    maps, mask_features = random_inputs(1, 2)
    forward = decoder(maps, mask_features, num_frames=2)[-1].class_logits
    swapped = decoder([m.flip(0) for m in maps], mask_features.flip(0), num_frames=2)[-1].class_logits
    assert not torch.allclose(forward, swapped, atol=1e-4)


def test_transformer_decoder_without_deep_supervision_returns_the_final_prediction() -> None:
    decoder, shallow = build_decoder(), build_decoder(deep_supervision=False)
    shallow.load_state_dict(decoder.state_dict())
    maps, mask_features = random_inputs(1)
    (only,) = shallow(maps, mask_features)
    assert torch.equal(only.class_logits, decoder(maps, mask_features)[-1].class_logits)


@pytest.mark.parametrize(
    ("in_channels", "enforce", "projects"), [(16, False, False), (16, True, True), (12, False, True)]
)
def test_transformer_decoder_projects_inputs_of_other_width(in_channels: int, enforce: bool, projects: bool) -> None:
    decoder = MultiScaleMaskedTransformerDecoder(
        in_channels,
        num_classes=5,
        hidden_dim=16,
        num_queries=7,
        nheads=4,
        dim_feedforward=24,
        dec_layers=1,
        pre_norm=False,
        mask_dim=8,
        enforce_input_project=enforce,
    )
    assert ("input_proj.2.weight" in decoder.state_dict()) == projects
    maps = [torch.randn(1, in_channels, *size) for size in SIZES]
    assert decoder(maps, torch.randn(1, 8, 22, 27))[-1].class_logits.shape == (1, 7, 6)


def test_transformer_decoder_attention_masks_carry_no_gradient() -> None:
    decoder = build_decoder(dec_layers=1)
    maps, mask_features = random_inputs(1)
    mask_features.requires_grad_()
    decoder(maps, mask_features)[-1].class_logits.sum().backward()
    assert mask_features.grad is None


def test_transformer_decoder_reads_its_config() -> None:
    cfg = get_cfg()
    cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE = "multi_scale_pixel_decoder"
    cfg.MODEL.MASK_FORMER.DEC_LAYERS = 10
    assert MultiScaleMaskedTransformerDecoder.from_config(cfg, 256)["dec_layers"] == 9
    cfg.MODEL.MASK_FORMER.DEC_LAYERS = 0
    with pytest.raises(ConfigError, match="DEC_LAYERS"):
        MultiScaleMaskedTransformerDecoder.from_config(cfg, 256)
    cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE = "res5"
    with pytest.raises(ConfigError, match=r"TRANSFORMER_IN_FEATURE.*res5"):
        MultiScaleMaskedTransformerDecoder.from_config(cfg, 256)


def test_video_decoder_is_the_image_decoder() -> None:
    video = TRANSFORMER_DECODER_REGISTRY.get("VideoMultiScaleMaskedTransformerDecoder")
    assert video is MultiScaleMaskedTransformerDecoder
