"""Linear layers over many tokens: (..., C_in) -> (..., C_out)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.ops import is_eager_cpu_inference

_HAS_ONEDNN = torch.backends.mkldnn.is_available()
_MIN_ROWS = 256  # below, the calls around the product cost what it saves


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`; for inference in float32 on a CPU as a 1 × 1 convolution of the same matrix.

    oneDNN's convolution adds the bias while it writes; the matrix product first spreads the bias over the whole output
    and then reads it back. Measured with 256 to 1024 channels: 10 to 20 % of the time.
    """
    if not _is_cpu_inference(x) or x.numel() < _MIN_ROWS * x.shape[-1]:
        return F.linear(x, weight, bias)
    rows = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # (1, C_in, N, 1), channels last
    out = F.conv2d(rows, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def cast_once(x: Tensor) -> Tensor:
    """x in the type to which autocast brings what linear layers are given: one copy where several layers take it.

    Not where gradients are wanted: those of the several layers would be summed in that type.
    """
    kind = x.device.type
    if torch.is_grad_enabled() or x.dtype != torch.float32 or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))


class Linear(nn.Linear):
    """A linear layer through `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def _is_cpu_inference(x: Tensor) -> bool:
    return (
        is_eager_cpu_inference(x) and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu") and _HAS_ONEDNN
    )
