"""Small blocks: a convolution with norm and activation, the perceptron of DETR's heads, stochastic depth.

Here, too, memory is saved: layers are recomputed in the backward pass, and inputs cast once where autocast would copy
them twice.

Letters: N batch, C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth


class MLP(nn.Module):
    """``num_layers`` linear layers with ReLU between them: (..., input_dim) -> (..., output_dim).

    State-dict names: layers.0.weight, layers.0.bias, layers.1.weight, ...
    """

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(nn.Linear(fan_in, fan_out) for fan_in, fan_out in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class DropPath(StochasticDepth):
    """Drops a residual branch of each sample with probability ``p`` in training, and scales the rest by 1 / (1 - p).

    Huang et al. 2016; one decision for each sample.
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__(p, mode="row")


ConvolutionT = TypeVar("ConvolutionT", bound=nn.Conv2d)


class Conv2d(nn.Conv2d):
    """Convolution, then ``norm``, then ``activation``: (N, C_in, H, W) -> (N, C_out, H', W').

    State-dict names: weight, bias and, below norm., those of the norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
        )
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self._conv_forward(x, self.weight, self.bias)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


def init_xavier(convolution: ConvolutionT) -> ConvolutionT:
    """Initialise weights uniformly with variance 1 / fan-in and the bias with zeros, and return the convolution."""
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution


Result = TypeVar("Result")


def run_checkpointed(step: Callable[..., Result], *args: Any, enabled: bool, **kwargs: Any) -> Result:
    """Return ``step`` of the arguments; with ``enabled``, and if gradients are wanted, store only the arguments."""
    if enabled and torch.is_grad_enabled():
        return checkpoint(step, *args, use_reentrant=False, **kwargs)
    return step(*args, **kwargs)


def checkpoint_activations(module: nn.Module, *, enabled: bool = True) -> int:
    """Make all parts of ``module`` that support it recompute their layers; return how many there are."""
    parts = [part for part in module.modules() if hasattr(part, "use_checkpoint")]
    for part in parts:
        part.use_checkpoint = enabled  # type: ignore[assignment]
    return len(parts)


def cast_once(x: Tensor) -> Tensor:
    """Return x in the dtype to which autocast casts the input of linear layers: one copy for several layers.

    Not if gradients are wanted: those of the several layers would be summed in that dtype.
    """
    kind = x.device.type
    if torch.is_grad_enabled() or x.dtype != torch.float32 or x.is_meta or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))
