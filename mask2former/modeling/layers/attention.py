"""Multi-head attention that takes a boolean mask for all heads.

Parameters are named as those of ``nn.MultiheadAttention``, which published checkpoints hold; the product itself is
PyTorch's fused attention.

Letters: B batch, Q queries, S tokens, C channels, M heads, D channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        """``attend_mask`` (B, 1, Q, S) bool is True where a query may attend to a token; each row needs one True."""
        projections = zip(self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), (query, key, value), strict=True)
        query, key, value = (self.project(x, weight, bias) for weight, bias, x in projections)
        return self.out_proj(self.attend(query, key, value, attend_mask))

    def project(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return tokens (B, S, C) as queries, keys or values, with weight (C, C) and bias (C,)."""
        return F.linear(x, weight, bias)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, attend_mask: Tensor | None) -> Tensor:
        """Return the attention (B, Q, C) of projected queries (B, Q, C) to projected keys and values (B, S, C)."""
        query, key, value = (self._split_heads(x) for x in (query, key, value))
        dropout = self.dropout if self.training else 0.0
        heads = F.scaled_dot_product_attention(query, key, value, attn_mask=attend_mask, dropout_p=dropout)
        return heads.transpose(1, 2).flatten(2)  # (B, M, Q, D) -> (B, Q, C)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, S, C) -> (B, M, S, D)
