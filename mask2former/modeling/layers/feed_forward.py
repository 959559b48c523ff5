"""Two linear layers with ReLU between them over many tokens, with a backward pass that goes through them in blocks.

Letters: N tokens, C channels, F hidden channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable

from mask2former.modeling.layers.hooks import has_hooks
from mask2former.modeling.layers.linear import Linear, linear
from mask2former.ops import is_eager_cpu

_BLOCK = 2048  # tokens whose hidden gradient is formed at a time: it stays in the cache, in memory that is used again


def feed_forward(x: Tensor, first: nn.Linear, second: nn.Linear) -> Tensor:
    """`second(relu(first(x)))` of tokens (..., C)."""
    is_eager = torch.is_grad_enabled() and is_eager_cpu(x) and not torch.is_autocast_enabled("cpu")
    if is_eager and x.dtype == torch.float32 and _is_plain(first) and _is_plain(second):
        rows = _FeedForward.apply(x.flatten(0, -2), first.weight, first.bias, second.weight, second.bias)
        return rows.unflatten(0, x.shape[:-1])
    return second(F.relu(first(x), inplace=True))


def _is_plain(layer: nn.Module) -> bool:
    """Whether calling it does no more than multiply: an adapter may stand in its place, or a hook wait for the call.

    Of a frozen layer, not all gradients are wanted that the backward pass forms.
    """
    if type(layer) not in (nn.Linear, Linear) or layer.bias is None or has_hooks(layer):
        return False
    return all(parameter.requires_grad for parameter in layer.parameters())


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
