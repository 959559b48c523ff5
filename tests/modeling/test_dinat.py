"""DiNAT: its attention equal to published values with padding and to the definition, and its options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mask2former.config import get_cfg
from mask2former.errors import ConfigError
from mask2former.modeling.backbone import D2DiNAT, build_backbone
from mask2former.modeling.backbone.dinat import DiNATBlock, NeighbourhoodAttention
from tests.parity import fill, load_fixture

TINY: dict[str, Any] = {
    "embed_dim": 8,
    "depths": (2, 1, 1, 1),
    "num_heads": (1, 2, 2, 4),
    "kernel_size": 3,
    "dilations": ((1, 4), (2,), (1,), (1,)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", range(3))
def test_neighbourhood_attention_module_equals_published_values(case: int, dtype: torch.dtype) -> None:
    fixture = load_fixture("oneformer/neighbourhood_attention")
    spec = fixture.json(f"module_{case}/spec_json")
    module = NeighbourhoodAttention(
        spec["dim"], num_heads=spec["heads"], kernel_size=spec["kernel"], dilation=spec["dilation"]
    ).to(dtype)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.from_numpy(fill(f"module.{name}", tuple(parameter.shape), case)))
        found = module(fixture.tensor(f"module_{case}/input").to(dtype))
    expected = fixture.tensor(f"module_{case}/output")
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6 * expected.abs().max().item()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("size", [(5, 9), (9, 5), (4, 4), (8, 8), (1, 1)])
def test_small_maps_are_padded_with_zeros_that_are_keys(size: tuple[int, int], qkv_bias: bool) -> None:
    module = NeighbourhoodAttention(8, num_heads=2, kernel_size=3, dilation=2, qkv_bias=qkv_bias)
    x = torch.randn(2, *size, 8)
    padded = F.pad(x, (0, 0, 0, max(6 - size[1], 0), 0, max(6 - size[0], 0)))
    torch.testing.assert_close(module(x), module(padded)[:, : size[0], : size[1]])


def test_padding_passes_gradients_to_the_biases_of_keys_and_values() -> None:
    module = NeighbourhoodAttention(4, num_heads=1, kernel_size=3, dilation=2).double()
    torch.nn.init.normal_(module.qkv.bias)
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    found = torch.autograd.grad(module(x).square().sum(), list(module.parameters()))
    padded = module(F.pad(x, (0, 0, 0, 2, 0, 3)))[:, :3, :4]
    for gradient, expected in zip(found, torch.autograd.grad(padded.square().sum(), list(module.parameters()))):
        torch.testing.assert_close(gradient, expected)


def test_attention_dropout_acts_in_training_only() -> None:
    module = NeighbourhoodAttention(8, num_heads=2, kernel_size=3, attn_drop=0.5)
    x = torch.randn(1, 5, 5, 8)
    assert not torch.equal(module(x), module(x))
    assert torch.equal(module.eval()(x), module(x))
    module.attn_drop = 1.0  # nothing is left of the values
    torch.testing.assert_close(module.train()(x), module.proj.bias.expand(1, 5, 5, 8))


def test_dinat_reads_every_config_key() -> None:
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "D2DiNAT", "MODEL.DiNAT.QK_SCALE", "1"])
    for key, value in {
        "EMBED_DIM": 8,
        "DEPTHS": [1, 2],
        "NUM_HEADS": [2, 4],
        "KERNEL_SIZE": 5,
        "DILATIONS": [[1, 7], [2, 3]],
        "MLP_RATIO": 2.0,
        "QKV_BIAS": False,
        "DROP_RATE": 0.1,
        "ATTN_DROP_RATE": 0.2,
        "DROP_PATH_RATE": 0.3,
        "OUT_FEATURES": ["res3"],
    }.items():
        cfg.MODEL.DiNAT[key] = value
    backbone = build_backbone(cfg)
    assert {name: (spec.channels, spec.stride) for name, spec in backbone.output_shape().items()} == {"res3": (16, 8)}
    block = backbone.levels[1].blocks[1]
    attn = block.attn
    assert (attn.num_heads, attn.kernel_size, attn.dilation, attn.scale, attn.attn_drop) == (4, 5, 3, 1.0, 0.2)
    assert (attn.qkv.bias, attn.proj_drop.p, backbone.pos_drop.p) == (None, 0.1, 0.1)
    assert (block.mlp.fc1.out_features, block.mlp.drop.p, block.drop_path.p) == (32, 0.1, pytest.approx(0.3))


def test_dinat_drop_path_grows_linearly_with_depth() -> None:
    backbone = D2DiNAT(**TINY, drop_path_rate=0.4)
    rates = [module.drop_path.p for module in backbone.modules() if isinstance(module, DiNATBlock)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_dinat_layers_follow_the_image_through_the_network() -> None:
    backbone = D2DiNAT(**TINY)
    layers = backbone.parameter_layers()
    assert set(layers) == {name for name, _ in backbone.named_parameters()}
    chosen = ("patch_embed.norm.bias", "levels.0.blocks.1.attn.rpb", "levels.0.downsample.norm.bias", "norm3.weight")
    assert [layers[name] for name in chosen] == [0, 2, 2, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": (1, 2)}, r"NUM_HEADS: .*found \[1, 2\]"),
        ({"num_heads": (1, 3, 2, 4)}, "NUM_HEADS: .*16 channels of level 1, found 3"),
        ({"kernel_size": 4}, "KERNEL_SIZE: expected an odd number, found 4"),
        ({"dilations": ((1, 4), (2,), (), (1,))}, r"DILATIONS: .*1 blocks of level 2, found \[\]"),
        ({"dilations": ((1, 0), (2,), (1,), (1,))}, r"DILATIONS: .*found \[1, 0\]"),
        ({"dilations": ((1, 4),)}, "DILATIONS: expected one entry for each of the 4 levels"),
    ],
)
def test_dinat_refuses_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"MODEL\.DiNAT\.{message}"):
        D2DiNAT(**{**TINY, **options})
