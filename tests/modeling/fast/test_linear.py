from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mask2former.modeling.fast import accelerate, encoder
from mask2former.modeling.fast.layers import FastLinear
from mask2former.modeling.layers import cast_once
from mask2former.modeling.pixel_decoder.deformable_encoder import MSDeformAttnEncoderLayer, pixel_centres


@pytest.mark.parametrize("shape", [(300, 16), (2, 300, 16), (3, 7, 50, 16), (5, 16)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_the_matrix_product(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = accelerate(nn.Linear(16, 24, bias=bias)), torch.randn(shape)
    assert type(layer) is FastLinear
    expected = F.linear(x, layer.weight, layer.bias)
    with torch.no_grad():
        found = layer(x)
        turned = layer(x.transpose(0, -2).contiguous().transpose(0, -2))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(turned, expected)
    assert found.is_contiguous()


def test_encoder_layer_in_tiles_equals_all_tokens_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    shapes = [(3, 4), (6, 9)]
    layer = MSDeformAttnEncoderLayer(32, num_levels=2, num_heads=4, num_points=2, hidden_channels=48, dropout=0.0)
    tokens, position = torch.randn(2, 66, 32), torch.randn(1, 66, 32)
    centres = pixel_centres(shapes, device=tokens.device)
    at_once = layer(tokens, position, centres=centres, shapes=shapes)
    accelerate(layer)
    monkeypatch.setattr(encoder, "_TILE_TOKENS", 14)  # seven of each image, the last tile smaller
    with torch.no_grad():
        in_tiles = layer(tokens, position, centres=centres, shapes=shapes)
    torch.testing.assert_close(in_tiles, at_once.detach())


def test_cast_once_is_what_autocast_does() -> None:
    x, layer = torch.randn(5, 16), nn.Linear(16, 8)
    with torch.no_grad():
        assert cast_once(x) is x
        with torch.autocast("cpu", torch.bfloat16):
            assert cast_once(x).dtype == torch.bfloat16
            assert cast_once(x.double()).dtype == torch.float64
            assert torch.equal(layer(cast_once(x)), layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert cast_once(x) is x
