"""The pixel decoder of Mask2Former on a CPU: its deformable encoder, and the sums of its pyramid.

In inference the encoder processes the tokens tile by tile, in place: the intermediate results of a tile stay in the
cache and their memory is used again. With all tokens at once they would pass through main memory a dozen times, each
time in pages that the system has yet to clear. In training the feed-forward network's backward pass is computed in
blocks.

Letters: B batch, S tokens of all levels, C channels, F hidden channels, N rows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable

from mask2former.modeling.fast.layers import FastLinear, linear
from mask2former.modeling.fast.twins import has_hooks, twin_of
from mask2former.modeling.pixel_decoder.deformable_encoder import (
    MSDeformAttn,
    MSDeformAttnEncoder,
    MSDeformAttnEncoderLayer,
    Shapes,
)
from mask2former.modeling.pixel_decoder.msdeformattn import MSDeformAttnPixelDecoder
from mask2former.ops import add_layer_norm_, add_resized, is_eager_cpu, is_eager_cpu_inference, is_map_written_over

_TILE_TOKENS = 2048  # measured: 1024 to 4096 are alike, all 17,850 of an 800 x 1088 image take 1.3 times as long
_BLOCK = 2048  # tokens whose hidden gradient is formed at a time: it stays in the cache, in memory that is used again


@twin_of(MSDeformAttnEncoderLayer, MSDeformAttn, digest="9d8bec71")
class FastMSDeformAttnEncoderLayer(MSDeformAttnEncoderLayer):
    """Infers tile by tile; trains with a feed-forward network whose backward pass is computed in blocks."""

    def forward(self, tokens: Tensor, position: Tensor, *, centres: Tensor, shapes: Shapes) -> Tensor:
        if not self.is_tiled(tokens):
            return super().forward(tokens, position, centres=centres, shapes=shapes)
        return self.update_(self.own(tokens), position, centres=centres, shapes=shapes)

    def is_tiled(self, tokens: Tensor) -> bool:
        """Return whether ``update_`` can be used: parts have the expected types and no hooks."""
        return is_eager_cpu_inference(tokens) and type(self.self_attn) is MSDeformAttn and not has_hooks(self)

    def own(self, tokens: Tensor) -> Tensor:
        """Return a copy of the tokens in the dtype of the layer's result."""
        return tokens.to(torch.promote_types(tokens.dtype, self.norm2.weight.dtype), copy=True)

    def update_(self, tokens: Tensor, position: Tensor, *, centres: Tensor, shapes: Shapes) -> Tensor:
        """Write the layer's result over the tokens and return them.

        Apart from the heads' values, a token depends on no other token.
        """
        heads = self.self_attn.heads_of(tokens)
        size = max(1, _TILE_TOKENS // tokens.shape[0])
        for start in range(0, tokens.shape[1], size):
            tile = slice(start, start + size)
            part = tokens[:, tile]
            attended = self.self_attn.attend(part + position[:, tile], heads, centres=centres[tile], shapes=shapes)
            _write_normed_sum(self.norm1, part, self.dropout(attended))
            _write_normed_sum(self.norm2, part, self.dropout(self.feed_forward(part)))
        return tokens

    def feed_forward(self, tokens: Tensor) -> Tensor:
        if not is_eager_cpu(tokens) or (self.training and self.dropout.p > 0):
            return super().feed_forward(tokens)
        return feed_forward(tokens, self.linear1, self.linear2)


def _write_normed_sum(norm: nn.Module, tokens: Tensor, update: Tensor) -> None:
    """Write the norm of tokens + update over the tokens."""
    if type(norm) is nn.LayerNorm:
        add_layer_norm_(tokens, update, weight=norm.weight, bias=norm.bias, eps=norm.eps)
    else:
        tokens.copy_(norm(tokens + update))


@twin_of(MSDeformAttnEncoder, digest="6e952977")
class FastMSDeformAttnEncoder(MSDeformAttnEncoder):
    """In inference all layers overwrite one copy of the tokens."""

    def forward(self, tokens: Tensor, position: Tensor, *, shapes: Shapes) -> Tensor:
        layers = list(self.layers)
        is_known = all(type(layer) is FastMSDeformAttnEncoderLayer and layer.is_tiled(tokens) for layer in layers)
        if not is_known or not layers:
            return super().forward(tokens, position, shapes=shapes)
        centres = self.centres(shapes, device=tokens.device)
        tokens = layers[0].own(tokens)  # type: ignore[operator]
        for layer in layers:
            tokens = layer.update_(tokens, position, centres=centres, shapes=shapes)  # type: ignore[operator]
        return tokens


@twin_of(MSDeformAttnPixelDecoder, digest="a86405c7")
class FastMSDeformAttnPixelDecoder(MSDeformAttnPixelDecoder):
    """Writes a sum of the pyramid over the adapter's output, in one pass with the resizing."""

    def add_above(self, adapter: nn.Module, features: Tensor, above: Tensor) -> Tensor:
        lateral = adapter(features)
        if is_map_written_over(lateral) and has_hooks(adapter):
            lateral = lateral.clone()  # whoever keeps the adapter's map keeps it as it was
        return add_resized(lateral, above)


def feed_forward(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    """Return ``second(relu(first(x)))`` of tokens (..., C) on a CPU."""
    if not (_is_plain(first) and _is_plain(second)):
        return second(F.relu(first(x)))
    if not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or x.dtype != torch.float32:
        return second(F.relu(first(x), inplace=True))
    rows = _FeedForward.apply(x.flatten(0, -2), first.weight, first.bias, second.weight, second.bias)
    return rows.unflatten(0, x.shape[:-1])


def _is_plain(layer: nn.Module) -> bool:
    """Return whether calling it does no more than multiply.

    An adapter may stand in its place, or a hook wait for the call.

    Of a frozen layer, not all gradients are wanted that the backward pass forms.
    """
    if type(layer) not in (nn.Linear, FastLinear) or layer.bias is None or has_hooks(layer):
        return False
    return not torch.is_grad_enabled() or all(parameter.requires_grad for parameter in layer.parameters())


class _FeedForward(torch.autograd.Function):
    """(N, C), (F, C), (F,), (C, F), (C,) -> (N, C)."""

    @staticmethod
    @custom_fwd(device_type="cpu")
    def forward(ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
        hidden = F.relu(linear(x, weight1, bias1), inplace=True)
        ctx.save_for_backward(x, hidden, weight1, weight2)
        return linear(hidden, weight2, bias2)

    @staticmethod
    @custom_bwd(device_type="cpu")  # an autocast around the backward pass is none of the forward's
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, hidden, weight1, weight2 = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x, grad_weight1, grad_weight2 = torch.empty_like(x), torch.zeros_like(weight1), torch.zeros_like(weight2)
        grad_bias1 = x.new_zeros(len(weight1))
        for begin in range(0, len(x), _BLOCK):
            block = slice(begin, begin + _BLOCK)
            grad_hidden = grad[block] @ weight2
            torch.ops.aten.threshold_backward.grad_input(grad_hidden, hidden[block], 0, grad_input=grad_hidden)
            grad_weight2.addmm_(grad[block].T, hidden[block])
            grad_weight1.addmm_(grad_hidden.T, x[block])
            grad_bias1 += grad_hidden.sum(0)
            torch.mm(grad_hidden, weight1, out=grad_x[block])
        return grad_x, grad_weight1, grad_bias1, grad_weight2, grad.sum(0)
