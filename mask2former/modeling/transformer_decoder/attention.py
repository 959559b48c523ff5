"""The layers of the transformer decoder: masked cross-attention, self-attention, feed-forward network.

Parameters are named as those of `nn.MultiheadAttention`, which published checkpoints hold; the product itself is
PyTorch's fused attention, with one boolean mask for all heads.

Letters: B batch, Q queries, S tokens, C channels, M heads, D channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MultiheadAttention(nn.Module):
    """Attention (Vaswani et al. 2017): queries (B, Q, C), keys and values (B, S, C) -> (B, Q, C)."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"channels must be divisible by heads: found {embed_dim} channels, {num_heads} heads")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
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
        heads = _attend(
            self._split_heads(F.linear(query, query_weight, query_bias)),
            self._split_heads(F.linear(key, key_weight, key_bias)),
            self._split_heads(F.linear(value, value_weight, value_bias)),
            attend_mask,
        )
        return self.out_proj(heads.transpose(1, 2).flatten(2))  # (B, M, Q, D) -> (B, Q, C)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, S, C) -> (B, M, S, D)


def _attend(query: Tensor, key: Tensor, value: Tensor, attend_mask: Tensor | None) -> Tensor:
    """Fused attention: queries (B, M, Q, D), keys and values (B, M, S, D) -> (B, M, Q, D)."""
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        # The fused kernel of the CPU is slower in bfloat16, with gradients up to eight times at a few tokens.
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask=attend_mask)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=attend_mask)


class SelfAttentionLayer(nn.Module):
    """Self-attention among queries with residual and norm: (B, Q, C) -> (B, Q, C)."""

    def __init__(self, channels: int, num_heads: int, *, pre_norm: bool = False) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(channels, num_heads)
        self.norm = nn.LayerNorm(channels)
        self.pre_norm = pre_norm

    def forward(self, queries: Tensor, query_position: Tensor) -> Tensor:
        x = self.norm(queries) if self.pre_norm else queries
        placed = x + query_position
        queries = queries + self.self_attn(placed, placed, x)
        return queries if self.pre_norm else self.norm(queries)


class CrossAttentionLayer(nn.Module):
    """Attention of queries (B, Q, C) to tokens (B, S, C) that their masks admit, with residual and norm."""

    def __init__(self, channels: int, num_heads: int, *, pre_norm: bool = False) -> None:
        super().__init__()
        self.multihead_attn = MultiheadAttention(channels, num_heads)
        self.norm = nn.LayerNorm(channels)
        self.pre_norm = pre_norm

    def forward(
        self, queries: Tensor, query_position: Tensor, *, keys: Tensor, values: Tensor, attend_mask: Tensor
    ) -> Tensor:
        x = self.norm(queries) if self.pre_norm else queries
        queries = queries + self.multihead_attn(x + query_position, keys, values, attend_mask)
        return queries if self.pre_norm else self.norm(queries)


class FeedForwardLayer(nn.Module):
    """Two linear layers with ReLU between them, residual and norm: (B, Q, C) -> (B, Q, C)."""

    def __init__(self, channels: int, hidden_channels: int, *, pre_norm: bool = False) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, hidden_channels)
        self.linear2 = nn.Linear(hidden_channels, channels)
        self.norm = nn.LayerNorm(channels)
        self.pre_norm = pre_norm
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, queries: Tensor) -> Tensor:
        x = self.norm(queries) if self.pre_norm else queries
        queries = queries + self.linear2(F.relu(self.linear1(x), inplace=True))
        return queries if self.pre_norm else self.norm(queries)
