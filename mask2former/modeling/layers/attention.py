"""Multi-head attention that takes a boolean mask for all heads.

Parameters are named as those of `nn.MultiheadAttention`, which published checkpoints hold; the product itself is
PyTorch's fused attention, for inference on a CPU our own.

Letters: B batch, Q queries, S tokens, C channels, M heads, D channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.modeling.layers.linear import linear
from mask2former.ops import is_attention_faster, masked_attention


class MultiheadAttention(nn.Module):
    """Attention (Vaswani et al. 2017): queries (B, Q, C), keys and values (B, S, C) -> (B, Q, C)."""

    def __init__(self, embed_dim: int, num_heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"channels must be divisible by heads: found {embed_dim} channels, {num_heads} heads")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.dropout = dropout  # of attention weights, in training
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dim))
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        # Query, key and value weights are initialised as the one matrix they are stored in.
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attend_mask: Tensor | None = None) -> Tensor:
        """`attend_mask` (B, 1, Q, S) bool is True where a query sees a token; each row needs one that it sees."""
        query_weight, key_weight, value_weight = self.in_proj_weight.chunk(3)
        query_bias, key_bias, value_bias = self.in_proj_bias.chunk(3)
        query = linear(query, query_weight, query_bias)
        key = linear(key, key_weight, key_bias)
        value = linear(value, value_weight, value_bias)
        dropout = self.dropout if self.training else 0.0
        if not dropout and is_attention_faster(query, key, self.num_heads):
            return self.out_proj(masked_attention(query, key, value, attend_mask, num_heads=self.num_heads))
        query, key, value = (self._split_heads(x) for x in (query, key, value))
        heads = _attend(query, key, value, attend_mask, dropout=dropout)
        return self.out_proj(heads.transpose(1, 2).flatten(2))  # (B, M, Q, D) -> (B, Q, C)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, S, C) -> (B, M, S, D)


def _attend(query: Tensor, key: Tensor, value: Tensor, attend_mask: Tensor | None, *, dropout: float) -> Tensor:
    """Fused attention: queries (B, M, Q, D), keys and values (B, M, S, D) -> (B, M, Q, D)."""
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        # The fused kernel of the CPU is slower in bfloat16, with gradients up to eight times at a few tokens.
        with torch.autocast("cpu", enabled=False):
            query, key, value = query.float(), key.float(), value.float()
            return F.scaled_dot_product_attention(query, key, value, attn_mask=attend_mask, dropout_p=dropout)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=attend_mask, dropout_p=dropout)
