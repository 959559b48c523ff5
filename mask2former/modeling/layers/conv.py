"""A convolution with the norm and activation that follow it, as one module with published state-dict names.

Letters: N batch, C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

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
