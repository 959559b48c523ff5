from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mask2former.config import get_cfg
from mask2former.errors import ConfigError
from mask2former.modeling import accelerate
from mask2former.modeling.pixel_decoder import MSDeformAttnPixelDecoder
from mask2former.modeling.pixel_decoder.deformable_encoder import MSDeformAttn, MSDeformAttnEncoderLayer, pixel_centres
from mask2former.ops import point_sample
from mask2former.structures import ShapeSpec

CHANNELS = {"res2": 8, "res3": 12, "res4": 16, "res5": 20}
STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
SHAPES = {name: ShapeSpec(channels=CHANNELS[name], stride=STRIDES[name]) for name in CHANNELS}


def build_pixel_decoder(**changes: Any) -> MSDeformAttnPixelDecoder:
    options = {
        "transformer_in_features": ["res3", "res4", "res5"],
        "transformer_enc_layers": 2,
        "transformer_nheads": 4,
        "transformer_dim_feedforward": 32,
        "conv_dim": 32,
        "mask_dim": 24,
    }
    return MSDeformAttnPixelDecoder(SHAPES, **{**options, **changes}).eval()


def random_features(batch: int, height: int, width: int) -> dict[str, Tensor]:
    return {
        name: torch.randn(batch, CHANNELS[name], -(-height // stride), -(-width // stride))
        for name, stride in STRIDES.items()
    }


@pytest.mark.parametrize("size", [(64, 96), (61, 93)])
def test_pixel_decoder_maps_have_the_sizes_of_the_backbone(size: tuple[int, int]) -> None:
    features = random_features(2, *size)
    mask_features, lowest, maps = build_pixel_decoder().forward_features(features)
    assert mask_features.shape == (2, 24, *features["res2"].shape[2:])
    assert lowest is maps[0]
    assert [tuple(m.shape) for m in maps] == [(2, 32, *features[name].shape[2:]) for name in ("res5", "res4", "res3")]


def test_pixel_decoder_batch_decodes_as_its_single_images_do() -> None:
    decoder, features = build_pixel_decoder(), random_features(2, 40, 72)
    together, _, _ = decoder.forward_features(features)
    for index in range(2):
        alone, _, _ = decoder.forward_features({name: maps[index : index + 1] for name, maps in features.items()})
        torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("common_stride", "num_levels"), [(4, 1), (8, 0)])
def test_pixel_decoder_pyramid_reaches_the_common_stride(common_stride: int, num_levels: int) -> None:
    decoder = build_pixel_decoder(common_stride=common_stride)
    features = random_features(1, 64, 64)
    assert decoder.forward_features(features)[0].shape[-2:] == (64 // common_stride, 64 // common_stride)
    assert sum(name.startswith("adapter_") for name, _ in decoder.named_children()) == num_levels


def test_pixel_decoder_pyramid_of_two_levels_goes_down_step_by_step() -> None:
    decoder = build_pixel_decoder(transformer_in_features=["res4", "res5"])
    mask_features, _, maps = decoder.forward_features(random_features(1, 64, 64))
    assert mask_features.shape[-2:] == (16, 16)
    assert [m.shape[-1] for m in maps] == [2, 4, 8]
    assert decoder.adapter_1.in_channels == CHANNELS["res2"]
    assert decoder.adapter_2.in_channels == CHANNELS["res3"]


def test_pixel_decoder_without_norm_has_biases() -> None:
    decoder = build_pixel_decoder(norm="")
    assert "adapter_1.bias" in decoder.state_dict()
    assert decoder.forward_features(random_features(1, 64, 64))[0].isfinite().all()


def test_pixel_decoder_bfloat16_stays_close_to_float32() -> None:
    decoder, features = build_pixel_decoder(), random_features(1, 64, 96)
    expected, _, _ = decoder.forward_features(features)
    with torch.autocast("cpu", torch.bfloat16):
        found, _, _ = decoder.forward_features(features)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_pixel_decoder_computes_in_float64() -> None:
    decoder, features = build_pixel_decoder(), random_features(1, 64, 64)
    expected, _, _ = decoder.forward_features(features)
    found, _, _ = decoder.double().forward_features({name: maps.double() for name, maps in features.items()})
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-4)


def test_pixel_decoder_gradients_reach_every_parameter() -> None:
    decoder = build_pixel_decoder().train()
    mask_features, _, maps = decoder.forward_features(random_features(1, 61, 45))
    (mask_features.square().sum() + sum(m.square().sum() for m in maps)).backward()
    without = [name for name, parameter in decoder.named_parameters() if parameter.grad is None]
    assert without == []


def test_deformable_attention_starts_with_one_direction_per_head() -> None:
    attention = MSDeformAttn(32, num_levels=2, num_heads=8, num_points=3)
    offsets = attention.sampling_offsets.bias.view(8, 2, 3, 2)
    directions = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    expected = torch.tensor(directions, dtype=torch.float32)[:, None, None] * torch.tensor([1.0, 2.0, 3.0])[:, None]
    torch.testing.assert_close(offsets, expected.expand(-1, 2, -1, -1))
    assert attention.sampling_offsets.weight.eq(0).all()


def test_deformable_attention_without_offsets_reads_its_own_place() -> None:
    attention = MSDeformAttn(8, num_levels=1, num_heads=2, num_points=2)
    with torch.no_grad():
        attention.sampling_offsets.bias.zero_()
    shapes = [(3, 5)]
    tokens = torch.randn(2, 15, 8)
    found = attention(
        tokens,
        tokens,
        centres=pixel_centres(shapes, device=tokens.device),
        shapes=shapes,
    )
    torch.testing.assert_close(found, attention.output_proj(attention.value_proj(tokens)))


def test_pixel_centres_sample_every_pixel_itself() -> None:
    shapes = [(2, 3), (5, 4)]
    centres = pixel_centres(shapes, device=torch.device("cpu"))
    assert centres.shape == (26, 2)
    for (height, width), points in zip(shapes, centres.split([6, 20])):
        image = torch.randn(1, 2, height, width)
        torch.testing.assert_close(point_sample(image, points[None]), image.flatten(2))


def test_pixel_decoder_reads_its_config() -> None:
    cfg = get_cfg()
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    assert MSDeformAttnPixelDecoder.from_config(cfg, SHAPES)["transformer_nheads"] == 8
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res2", "p6"]
    with pytest.raises(ConfigError, match="p6"):
        MSDeformAttnPixelDecoder.from_config(cfg, SHAPES)


@torch.no_grad()
def test_pixel_decoder_leaves_an_adapters_map_to_its_hooks() -> None:
    decoder = accelerate(build_pixel_decoder())
    features = {name: maps.to(memory_format=torch.channels_last) for name, maps in random_features(1, 64, 96).items()}
    expected, _, _ = decoder.forward_features(features)
    seen: list[Tensor] = []
    decoder.adapter_1.register_forward_hook(lambda module, inputs, output: seen.extend((output, output.clone())))
    found, _, _ = decoder.forward_features(features)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(found, expected)


def test_encoder_layer_calls_a_norm_that_somebody_looks_at() -> None:
    layer = MSDeformAttnEncoderLayer(
        16, num_levels=1, num_heads=2, num_points=2, hidden_channels=32, dropout=0.0
    ).eval()
    accelerate(layer)
    tokens, position, shapes = torch.randn(2, 12, 16), torch.randn(1, 12, 16), [(3, 4)]
    options = {"centres": pixel_centres(shapes, device=tokens.device), "shapes": shapes}
    with torch.no_grad():
        expected = layer(tokens, position, **options)
        seen: list[Tensor] = []
        for norm in (layer.norm1, layer.norm2):
            norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
        found = layer(tokens, position, **options)
    assert len(seen) == 2
    torch.testing.assert_close(seen[1], found)
    torch.testing.assert_close(found, expected)
