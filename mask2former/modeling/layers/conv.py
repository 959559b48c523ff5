"""A convolution with the norm and activation that follow it, as one module with published state-dict names.

Letters: N batch, C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from mask2former.modeling.layers.norms import FrozenBatchNorm2d

ConvolutionT = TypeVar("ConvolutionT", bound=nn.Conv2d)


class Conv2d(nn.Conv2d):
    """Convolution, then `norm`, then `activation`: (N, C_in, H, W) -> (N, C_out, H', W').

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
        if self._is_folding_cheaper(x):
            x = self._conv_forward(x, *self.folded_terms())
        else:
            x = self._conv_forward(x, self.weight, self.bias)
            if self.norm is not None:
                x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x

    def _is_folding_cheaper(self, x: Tensor) -> bool:
        """Whether scaling the weights, at each call, costs less than another pass over the map.

        Measured on CPUs: with gradients it gains nothing, and on a GPU its launches cost more than the pass.
        """
        if not isinstance(self.norm, FrozenBatchNorm2d) or x.device.type != "cpu" or torch.is_grad_enabled():
            return False
        if torch.compiler.is_compiling():  # a compiler fuses the pass; in an export the choice would fix the sizes
            return False
        num_positions = x.shape[0] * (x.shape[-2] // self.stride[0]) * (x.shape[-1] // self.stride[1])
        return num_positions > self.weight[0].numel()

    def folded_terms(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution that equals this one and its FrozenBatchNorm2d, up to rounding."""
        assert isinstance(self.norm, FrozenBatchNorm2d)
        scale, shift = self.norm.scale_and_shift()
        bias = shift if self.bias is None else shift + self.bias * scale
        return self.weight * scale.to(self.weight.dtype)[:, None, None, None], bias.to(self.weight.dtype)

    @torch.no_grad()
    def fold_norm(self) -> None:
        """Merges a FrozenBatchNorm2d into weight and bias for good; other norms stay as they are."""
        if not isinstance(self.norm, FrozenBatchNorm2d):
            return
        weight, bias = self.folded_terms()
        self.weight.copy_(weight)
        self.bias = nn.Parameter(bias, requires_grad=self.weight.requires_grad)
        self.norm = None


def init_xavier(convolution: ConvolutionT) -> ConvolutionT:
    """Uniform weights of variance 1 / fan-in and no bias: the start of every projection; returns its argument."""
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution


def fold_frozen_batch_norm(module: nn.Module) -> nn.Module:
    """Merges every frozen batch norm in `module` into its convolution, in place, for inference; returns `module`.

    Afterwards the state dict has other names than a checkpoint: load weights first.
    """
    for child in module.modules():
        if isinstance(child, Conv2d):
            child.fold_norm()
    return module
