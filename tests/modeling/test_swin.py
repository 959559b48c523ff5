"""Swin: equal to the reference, and to attention over the whole map with every forbidden pair masked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.config import get_cfg
from mask2former.errors import ConfigError
from mask2former.modeling.backbone import D2SwinTransformer, build_backbone
from mask2former.modeling.backbone.swin import PatchMerging, SwinBlock
from mask2former.modeling.backbone.window_attention import (
    WindowAttention,
    merge_shifted_windows,
    merge_windows,
    partition_shifted_windows,
    partition_windows,
    relative_position_index,
    shift_masks,
)
from tests.parity import assert_close_to_peak, fill_model, fixture_config, load_fixture

TINY: dict[str, Any] = {"embed_dim": 8, "depths": (2, 2, 1, 1), "num_heads": (1, 2, 4, 8), "window_size": 4}


def attention_over_whole_map(attn: WindowAttention, x: Tensor, *, window_size: int, is_shifted: bool) -> Tensor:
    """The definition: a token sees those of its window (B, H, W, C), but none from the other side of the map."""
    B, H, W, C = x.shape
    w, shift = window_size, window_size // 2 if is_shifted else 0
    y, x_ = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    # In the unshifted frame, windows of a shifted map begin at `shift`; what lies before is a strip of its own.
    window_y, window_x = (torch.div(axis - shift, w, rounding_mode="floor").flatten() for axis in (y, x_))
    y, x_ = y.flatten(), x_.flatten()
    together = (window_y[:, None] == window_y) & (window_x[:, None] == window_x)
    place_y, place_x = (y - shift) % w, (x_ - shift) % w
    index = (place_y[:, None] - place_y + w - 1) * (2 * w - 1) + place_x[:, None] - place_x + w - 1
    bias = attn.relative_position_bias_table[index].permute(2, 0, 1)  # (M, H W, H W)
    qkv = attn.qkv(x.reshape(B, H * W, C)).view(B, H * W, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    logits = attn.scale * qkv[0] @ qkv[1].transpose(-1, -2) + bias
    out = logits.masked_fill(~together, float("-inf")).softmax(-1) @ qkv[2]
    return attn.proj(out.transpose(1, 2).reshape(B, H, W, C))


def build_attention(dim: int, *, window_size: int, num_heads: int) -> WindowAttention:
    attn = WindowAttention(dim, window_size=window_size, num_heads=num_heads).eval()
    nn.init.normal_(attn.relative_position_bias_table)
    return attn


@pytest.mark.parametrize("is_shifted", [False, True])
@pytest.mark.parametrize(
    ("window_size", "size"), [(4, (12, 8)), (4, (4, 4)), (4, (4, 12)), (4, (8, 4)), (7, (14, 21)), (3, (6, 9))]
)
def test_window_attention_equals_masked_attention_over_whole_map(
    window_size: int, size: tuple[int, int], is_shifted: bool
) -> None:
    attn = build_attention(6, window_size=window_size, num_heads=2)
    x = torch.randn(2, *size, 6)
    if is_shifted:
        windows, counts = partition_shifted_windows(x, window_size)
        out = attn(windows, masks=shift_masks(window_size), counts=counts)
        actual = merge_shifted_windows(out, window_size, size=size, batch_size=2)
    else:
        out = attn(partition_windows(x, window_size))
        actual = merge_windows(out, window_size, size=size, batch_size=2)
    expected = attention_over_whole_map(attn, x, window_size=window_size, is_shifted=is_shifted)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(4, 4), (8, 12), (4, 8), (12, 4)])
def test_windows_put_back_together_are_the_map(size: tuple[int, int]) -> None:
    x = torch.randn(3, *size, 2)
    assert torch.equal(merge_windows(partition_windows(x, 4), 4, size=size, batch_size=3), x)
    windows, counts = partition_shifted_windows(x, 4)
    assert sum(counts) == len(windows) == 3 * size[0] * size[1] // 16
    assert torch.equal(merge_shifted_windows(windows, 4, size=size, batch_size=3), x)


def test_relative_position_index_depends_on_the_offset_alone() -> None:
    index = relative_position_index(3).view(3, 3, 3, 3)
    assert index.min() == 0
    assert index.max() == 24
    assert (index.diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1) == 12).all()
    assert index[1, 2, 0, 1] == index[2, 1, 1, 0] != index[0, 1, 1, 2]


def test_swin_block_pads_odd_sizes_with_zeros() -> None:
    block = SwinBlock(
        6,
        attn=build_attention(6, window_size=4, num_heads=2),
        window_size=4,
        mlp_ratio=2.0,
        drop=0.0,
        drop_path=0.0,
    ).eval()
    x = torch.randn(1, 5, 7, 6)
    padded = F.pad(block.norm1(x), (0, 0, 0, 1, 0, 3))
    attended = attention_over_whole_map(block.attn, padded, window_size=4, is_shifted=True)[:, :5, :7]
    expected = x + attended
    expected = expected + block.mlp(block.norm2(expected))
    torch.testing.assert_close(block(x, shift_masks(4)), expected, atol=1e-5, rtol=1e-4)


def test_patch_merging_joins_four_neighbours_and_pads_odd_sizes() -> None:
    merging = PatchMerging(3)
    x = torch.randn(2, 5, 3, 3)
    padded = F.pad(x, (0, 0, 0, 1, 0, 1))
    joined = torch.cat([padded[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], dim=-1)
    torch.testing.assert_close(merging(x), merging.reduction(merging.norm(joined)))


def test_swin_matches_reference() -> None:
    fixture = load_fixture("tiny_swin_panoptic")
    model = nn.Module()
    model.backbone = build_backbone(fixture_config(fixture)).eval()
    fill_model(model, fixture.seed)
    for is_grad_enabled in (False, True):
        with torch.set_grad_enabled(is_grad_enabled):
            features = model.backbone(fixture.tensor("padded_input"))
        for name, feature in features.items():
            assert_close_to_peak(feature.detach(), fixture.tensor(f"backbone/{name}"), tolerance=1e-5)


def test_swin_absolute_position_is_resized_to_the_input() -> None:
    backbone = D2SwinTransformer(**TINY, ape=True, pretrain_img_size=32)
    assert next(iter(backbone.state_dict())) == "absolute_pos_embed"
    assert backbone.absolute_pos_embed.shape == (1, 8, 8, 8)
    position = torch.randn(1, 8, 8, 8)
    with torch.no_grad():
        backbone.absolute_pos_embed.copy_(position)
    tokens = torch.zeros(2, 8, 8, 8)
    torch.testing.assert_close(backbone._add_absolute_position(tokens)[1], position[0].permute(1, 2, 0))
    with torch.no_grad():
        backbone.absolute_pos_embed.fill_(2.0)
    resized = backbone._add_absolute_position(torch.zeros(1, 5, 11, 8))
    torch.testing.assert_close(resized, torch.full_like(resized, 2.0))


def test_swin_checkpointing_gives_equal_gradients() -> None:
    plain = D2SwinTransformer(**TINY, drop_path_rate=0.5)
    saving = D2SwinTransformer(**TINY, drop_path_rate=0.5, use_checkpoint=True)
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 37, 50)
    for backbone in (plain, saving):
        torch.manual_seed(5)  # the same branches are dropped
        sum(feature.square().mean() for feature in backbone.train()(image).values()).backward()
    for (name, expected), actual in zip(plain.named_parameters(), saving.parameters()):
        torch.testing.assert_close(actual.grad, expected.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_swin_drop_rates_act_in_training_only() -> None:
    backbone = D2SwinTransformer(**TINY, drop_rate=0.2, attn_drop_rate=0.2, drop_path_rate=0.5)
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        first, second = (backbone.train()(image)["res5"] for _ in range(2))
        assert not torch.equal(first, second)
        first, second = (backbone.eval()(image)["res5"] for _ in range(2))
        assert torch.equal(first, second)


def test_swin_drop_path_grows_linearly_with_depth() -> None:
    backbone = D2SwinTransformer(**TINY, drop_path_rate=0.5)
    rates = [module.drop_path.p for module in backbone.modules() if isinstance(module, SwinBlock)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_swin_reads_every_config_key() -> None:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "D2SwinTransformer"
    for key, value in {
        "EMBED_DIM": 8,
        "DEPTHS": [1, 2],
        "NUM_HEADS": [2, 4],
        "WINDOW_SIZE": 3,
        "PATCH_SIZE": 2,
        "PRETRAIN_IMG_SIZE": 10,
        "MLP_RATIO": 2.0,
        "QKV_BIAS": False,
        "QK_SCALE": 0.25,
        "DROP_RATE": 0.1,
        "ATTN_DROP_RATE": 0.2,
        "DROP_PATH_RATE": 0.3,
        "APE": True,
        "PATCH_NORM": False,
        "USE_CHECKPOINT": True,
        "OUT_FEATURES": ["res3"],
    }.items():
        cfg.MODEL.SWIN[key] = value
    backbone = build_backbone(cfg)
    block = backbone.layers[1].blocks[1]
    assert {name: (spec.channels, spec.stride) for name, spec in backbone.output_shape().items()} == {"res3": (16, 4)}
    assert backbone.absolute_pos_embed.shape == (1, 8, 5, 5)
    assert backbone.patch_embed.norm is None
    assert backbone.layers[0].use_checkpoint
    assert (block.window_size, block.attn.num_heads, block.attn.scale, block.attn.attn_drop) == (3, 4, 0.25, 0.2)
    assert block.attn.qkv.bias is None
    assert (block.mlp.fc1.out_features, block.mlp.drop.p, block.drop_path.p) == (32, 0.1, pytest.approx(0.3))


@pytest.mark.parametrize(
    ("options", "found"), [({"num_heads": (1, 2)}, r"found \[1, 2\]"), ({"num_heads": (1, 3, 4, 8)}, "found 3")]
)
def test_swin_refuses_heads_that_do_not_fit(options: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=rf"MODEL\.SWIN\.NUM_HEADS: .*{found}"):
        D2SwinTransformer(**{**TINY, **options})
