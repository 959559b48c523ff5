"""Linear layers and attention on a CPU, and window attention of a model that is used for inference only.

Letters: B batch, Q queries, S tokens, C channels, M heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.modeling.backbone.window_attention import WindowAttention
from mask2former.modeling.fast.twins import twin_of
from mask2former.modeling.layers import MultiheadAttention
from mask2former.ops import is_attention_faster, is_eager_cpu_inference, masked_attention

_HAS_ONEDNN = torch.backends.mkldnn.is_available()
_MIN_ROWS = 256  # below, the calls around the product cost what it saves


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``F.linear``; for inference in float32 on a CPU as a 1 × 1 convolution with the same matrix.

    oneDNN's convolution adds the bias while it writes; the matrix product first spreads the bias over the whole output
    and then reads it back. Measured with 256 to 1024 channels: 10 to 20 % of the time.
    """
    if not _is_float32_inference(x) or x.numel() < _MIN_ROWS * x.shape[-1]:
        return F.linear(x, weight, bias)
    rows = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # (1, C_in, N, 1), channels last
    out = F.conv2d(rows, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def _is_float32_inference(x: Tensor) -> bool:
    return (
        is_eager_cpu_inference(x) and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu") and _HAS_ONEDNN
    )


@twin_of(nn.Linear)
class FastLinear(nn.Linear):
    """A linear layer through ``linear``."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


@twin_of(MultiheadAttention, digest="6bd8d146")
class FastMultiheadAttention(MultiheadAttention):
    """Attention by our kernel where that is faster."""

    def project(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear(x, weight, bias)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, attend_mask: Tensor | None) -> Tensor:
        has_dropout = self.training and self.dropout > 0
        if not has_dropout and is_attention_faster(query, key, self.num_heads):
            return masked_attention(query, key, value, attend_mask, num_heads=self.num_heads).to(query.dtype)
        if query.device.type == "cpu" and query.dtype == torch.bfloat16:
            # The fused kernel of the CPU is slower in bfloat16, with gradients up to eight times at a few tokens.
            with torch.autocast("cpu", enabled=False):
                return super().attend(query.float(), key.float(), value.float(), attend_mask).to(query.dtype)
        return super().attend(query, key, value, attend_mask)


class PreparedWindowAttention(WindowAttention):
    """Window attention with a precomputed position bias; later changes of the bias table have no effect."""

    kept_bias: Tensor

    def position_bias(self) -> Tensor:
        return self.kept_bias


@torch.no_grad()
def keep_position_bias(attention: WindowAttention, *, dtype: torch.dtype | None = None) -> None:
    """Compute the position bias once, in ``dtype``, by default that of the table."""
    bias = attention.position_bias().to(dtype or attention.relative_position_bias_table.dtype)
    attention.register_buffer("kept_bias", bias, persistent=False)
    attention.__class__ = PreparedWindowAttention
