"""A convolution with the norm and activation that follow it, as one module with published state-dict names.

Letters: N batch, C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.modeling.layers.hooks import has_hooks
from mask2former.modeling.layers.norms import FrozenBatchNorm2d, GroupNorm, freeze_batch_norm
from mask2former.ops import (
    WinogradWeight,
    add_product_relu_,
    conv3x3,
    is_map_written_over,
    is_trained_winograd_faster,
    is_winograd_faster,
    trained_conv3x3,
)

_RELUS = (F.relu, F.relu_)

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
        self._winograd_weight = WinogradWeight()

    def forward(self, x: Tensor) -> Tensor:
        norm, activation = self.norm, self.activation
        if self._is_plain(3) and is_winograd_faster(x, self.weight):
            is_merged = _is_mergeable(norm)
            relu = is_merged and activation in _RELUS  # spares a pass over the map
            scale, shift = self._affine_terms() if is_merged else (None, self.bias)
            x = conv3x3(x, self.weight, scale=scale, shift=shift, relu=relu, kept=self._winograd_weight)
            norm, activation = None if is_merged else norm, None if relu else activation
        elif self.bias is None and self._is_plain(3) and is_trained_winograd_faster(x, self.weight):
            x = trained_conv3x3(x, self.weight)
        elif self._is_folding_cheaper(x):
            x, norm = self._conv_forward(x, *self.folded_terms()), None
        else:
            x = self._conv_forward(x, self.weight, self.bias)
        return _finish(x, norm, activation)

    def add_over(self, total: Tensor, x: Tensor) -> Tensor:
        """ReLU of `total` plus what this layer, which has no activation, makes of x; may be written over `total`.

        In half precision maps are small enough for memory to be used again, and it gains nothing.
        """
        if self._is_plain(1) and x.dtype == total.dtype == torch.float32 and _is_mergeable(self.norm):
            weight, bias = (self.weight, self.bias) if self.norm is None else self.folded_terms()
            if bias is not None and is_map_written_over(total):
                return add_product_relu_(total, x, weight.flatten(1), bias)
        return F.relu_(self(x).add_(total))

    def _is_plain(self, size: int) -> bool:
        """Whether it is a convolution of size x size and stride 1 that keeps the map's size, and nothing more."""
        geometry = (self.kernel_size, self.stride, self.padding, self.dilation, self.groups, self.padding_mode)
        return geometry == ((size, size), (1, 1), (size // 2, size // 2), (1, 1), 1, "zeros")

    def _affine_terms(self) -> tuple[Tensor | None, Tensor | None]:
        """What the products are multiplied with, and what is added to them: frozen batch norm's terms and the bias."""
        if not isinstance(self.norm, FrozenBatchNorm2d):
            return None, self.bias
        scale, shift = self.norm.scale_and_shift()
        return scale, shift if self.bias is None else shift + self.bias * scale

    def _is_folding_cheaper(self, x: Tensor) -> bool:
        """Whether scaling the weights, at each call, costs less than another pass over the map.

        Measured on CPUs: with gradients it gains nothing, and on a GPU its launches cost more than the pass.
        """
        if self.norm is None or x.device.type != "cpu" or torch.is_grad_enabled():
            return False
        if torch.compiler.is_compiling():  # a compiler fuses the pass; in an export the choice would fix the sizes
            return False
        if not _is_mergeable(self.norm):
            return False
        num_positions = x.shape[0] * (x.shape[-2] // self.stride[0]) * (x.shape[-1] // self.stride[1])
        return num_positions > self.weight[0].numel()

    def folded_terms(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution that equals this one and its FrozenBatchNorm2d, up to rounding."""
        scale, bias = self._affine_terms()
        assert scale is not None
        assert bias is not None
        return self.weight * scale.to(self.weight.dtype)[:, None, None, None], bias.to(self.weight.dtype)

    @torch.no_grad()
    def fold_norm(self) -> None:
        """Merges a batch norm, with the statistics it has, into weight and bias for good.

        Other norms stay as they are, and where hooks are: they may wait for the norm, or make the weight (weight_norm).
        """
        if has_hooks(self):
            return
        freeze_batch_norm(self)
        if not isinstance(self.norm, FrozenBatchNorm2d):
            return
        weight, bias = self.folded_terms()
        requires_grad = self.weight.requires_grad
        self.weight = nn.Parameter(weight, requires_grad=requires_grad)  # a new one: others may share the old
        self.bias = nn.Parameter(bias, requires_grad=requires_grad)
        self.norm = None


def _is_mergeable(norm: nn.Module | None) -> bool:
    """Whether terms may take the place of the norm's call: there is none, or a frozen one that no hook waits for."""
    return norm is None or (isinstance(norm, FrozenBatchNorm2d) and not has_hooks(norm))


def _finish(x: Tensor, norm: nn.Module | None, activation: Callable[[Tensor], Tensor] | None) -> Tensor:
    """Norm and activation of a map that was made for them."""
    if isinstance(norm, GroupNorm) and is_map_written_over(x) and not has_hooks(norm):
        relu = activation in _RELUS
        x, norm, activation = norm.write_over(x, relu=relu), None, None if relu else activation
    if norm is not None:
        x = norm(x)
    return x if activation is None else activation(x)


def init_xavier(convolution: ConvolutionT) -> ConvolutionT:
    """Uniform weights of variance 1 / fan-in and no bias: the start of every projection; returns its argument."""
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution
