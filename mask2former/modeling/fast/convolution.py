"""Convolutions, and ResNet's blocks of them, on a CPU.

In inference 3 × 3 convolutions use Winograd's algorithm, norms are merged into weights or computed in place, and a
residual sum is written over its input; training uses Winograd where it pays. Each further map of 1/4 of an image costs
the time in which the system clears as much memory, several times that of the computation.

Letters: N batch, C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.modeling.backbone.resnet import BasicBlock, BottleneckBlock, BottleneckStage
from mask2former.modeling.fast.twins import has_hooks, twin_of
from mask2former.modeling.layers import Conv2d, FrozenBatchNorm2d, LayerNorm2d, SyncBatchNorm, freeze_batch_norm
from mask2former.modeling.layers.norms import GroupNorm
from mask2former.ops import (
    WinogradWeight,
    add_product_relu_,
    conv3x3,
    group_norm_relu_,
    is_eager_cpu,
    is_eager_cpu_inference,
    is_map_written_over,
    is_trained_winograd_faster,
    is_winograd_faster,
    trained_conv3x3,
)

_RELUS = (F.relu, F.relu_)
# What these put out is theirs alone: nothing that a backward pass needs is lost where ReLU is written over it.
_OWN_OUTPUT = (type(None), FrozenBatchNorm2d, GroupNorm, LayerNorm2d, SyncBatchNorm, nn.BatchNorm2d, nn.GroupNorm)


@twin_of(Conv2d, FrozenBatchNorm2d, GroupNorm, digest="5f2c54b7")
class FastConv2d(Conv2d):
    """Convolution, norm and activation in as few passes over the map as possible."""

    def forward(self, x: Tensor) -> Tensor:
        if not is_eager_cpu(x):
            return super().forward(x)
        norm, activation = self.norm, self.activation
        if self._is_plain(3) and is_winograd_faster(x, self.weight):
            is_merged = _is_mergeable(norm)
            relu = is_merged and activation in _RELUS  # spares a pass over the map
            scale, shift = affine_terms(self) if is_merged else (None, self.bias)
            x = conv3x3(x, self.weight, scale=scale, shift=shift, relu=relu, kept=self._winograd_weight())
            norm, activation = None if is_merged else norm, None if relu else activation
        elif self.bias is None and self._is_plain(3) and is_trained_winograd_faster(x, self.weight):
            x = trained_conv3x3(x, self.weight)
        elif self._is_folding_cheaper(x):
            x, norm = self._conv_forward(x, *folded_terms(self)), None
        else:
            x = self._conv_forward(x, self.weight, self.bias)
        return _finish(x, norm, activation)

    def add_over(self, total: Tensor, x: Tensor) -> Tensor:
        """Return the ReLU of ``total`` plus this layer of x; ``total`` may be overwritten. The layer has no activation.

        In half precision maps are small enough for memory to be used again, and nothing would be gained.
        """
        if self._is_plain(1) and x.dtype == total.dtype == torch.float32 and _is_mergeable(self.norm):
            weight, bias = (self.weight, self.bias) if self.norm is None else folded_terms(self)
            if bias is not None and is_map_written_over(total):
                return add_product_relu_(total, x, weight.flatten(1), bias)
        return F.relu_(self(x).add_(total))

    def _is_plain(self, size: int) -> bool:
        """Return whether it is a plain convolution of size x size and stride 1 that keeps the size of the map."""
        geometry = (self.kernel_size, self.stride, self.padding, self.dilation, self.groups, self.padding_mode)
        return geometry == ((size, size), (1, 1), (size // 2, size // 2), (1, 1), 1, "zeros")

    def _winograd_weight(self) -> WinogradWeight:
        """Return the store of the transformed weight, which is kept beside the parameters and is not one of them."""
        return vars(self).setdefault("_kept_winograd_weight", WinogradWeight())

    def _is_folding_cheaper(self, x: Tensor) -> bool:
        """Return whether scaling the weights at each call costs less than another pass over the map; no gradients."""
        if self.norm is None or torch.is_grad_enabled() or not _is_mergeable(self.norm):
            return False
        num_positions = x.shape[0] * (x.shape[-2] // self.stride[0]) * (x.shape[-1] // self.stride[1])
        return num_positions > self.weight[0].numel()


def affine_terms(convolution: Conv2d) -> tuple[Tensor | None, Tensor | None]:
    """Return the scale and shift of the products: those of a frozen batch norm, and the bias."""
    norm, bias = convolution.norm, convolution.bias
    if not isinstance(norm, FrozenBatchNorm2d):
        return None, bias
    scale, shift = norm.scale_and_shift()
    return scale, shift if bias is None else shift + bias * scale


def folded_terms(convolution: Conv2d) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the convolution that equals this one and its FrozenBatchNorm2d, up to rounding."""
    scale, bias = affine_terms(convolution)
    weight = convolution.weight
    assert scale is not None
    assert bias is not None
    return weight * scale.to(weight.dtype)[:, None, None, None], bias.to(weight.dtype)


@torch.no_grad()
def fold_norm(convolution: Conv2d) -> None:
    """Merge a batch norm with its current statistics into weight and bias, permanently.

    Other norms stay, and so do those near hooks, which may expect the norm or compute the weight (weight_norm).
    """
    if has_hooks(convolution):
        return
    freeze_batch_norm(convolution)
    if type(convolution.norm) is not FrozenBatchNorm2d:
        return
    requires_grad = convolution.weight.requires_grad
    weight, bias = folded_terms(convolution)
    convolution.weight = nn.Parameter(weight, requires_grad=requires_grad)  # a new one: others may share the old
    convolution.bias = nn.Parameter(bias, requires_grad=requires_grad)
    convolution.norm = None


def _is_mergeable(norm: nn.Module | None) -> bool:
    """Return whether there is no norm, or a frozen one without hooks, so that its call can be replaced by terms."""
    return norm is None or (type(norm) is FrozenBatchNorm2d and not has_hooks(norm))


def _finish(x: Tensor, norm: nn.Module | None, activation: Callable[[Tensor], Tensor] | None) -> Tensor:
    """Apply norm and activation, in place where possible, to a map that nothing else holds."""
    is_looked_at = norm is not None and has_hooks(norm)
    if type(norm) is GroupNorm and is_map_written_over(x) and not is_looked_at:
        relu = activation in _RELUS
        x = group_norm_relu_(x, num_groups=norm.num_groups, weight=norm.weight, bias=norm.bias, eps=norm.eps, relu=relu)
        norm, activation = None, None if relu else activation
    if norm is not None:
        x = norm(x)
    if activation is F.relu and type(norm) in _OWN_OUTPUT and not is_looked_at:
        activation = F.relu_
    return x if activation is None else activation(x)


@twin_of(BasicBlock, digest="17d8c6e8")
class FastBasicBlock(BasicBlock):
    """Writes the residual sum over the output of the second convolution."""

    def forward(self, x: Tensor) -> Tensor:
        if not is_eager_cpu(x) or not _may_write_over_output(self.conv2):
            return super().forward(x)
        out = self.conv2(self.conv1(x))
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)


@twin_of(BottleneckBlock, digest="fe34b105")
class FastBottleneckBlock(BottleneckBlock):
    """Writes the residual sum over the output of the last convolution or, where that is allowed, of the shortcut."""

    def forward(self, x: Tensor, *, in_place: bool = False) -> Tensor:
        """``in_place``: the sum may overwrite the output of the shortcut, which is x if the shortcut has no layer."""
        if not is_eager_cpu(x) or not _may_write_over_output(self.conv3):
            return super().forward(x)
        hidden = self.conv2(self.conv1(x))
        total = x if self.shortcut is None else self.shortcut(x)
        if in_place:
            return self.conv3.add_over(total, hidden)  # type: ignore[operator]
        return F.relu_(self.conv3(hidden).add_(total))


def _may_write_over_output(convolution: Any) -> bool:
    """Return whether the output is a new map that no hook sees."""
    is_own = type(convolution) is FastConv2d and convolution.activation is None
    return is_own and type(convolution.norm) in _OWN_OUTPUT and not has_hooks(convolution)


@twin_of(BottleneckStage)
class FastBottleneckStage(BottleneckStage):
    """In inference writes each sum over the map before it, unless hooks see that map."""

    def forward(self, x: Tensor) -> Tensor:
        if not is_eager_cpu_inference(x) or has_hooks(self):
            return super().forward(x)
        given = x
        for block in self:
            if type(block) is FastBottleneckBlock:
                # What the stage was given is the caller's.
                x = block(x, in_place=x is not given or block.shortcut is not None)
            else:
                x = block(x)
        return x
