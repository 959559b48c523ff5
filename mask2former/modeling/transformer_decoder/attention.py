"""The layers of the masked transformer decoder: cross-attention, self-attention, feed-forward network.

Letters: B batch, Q queries, S tokens, C channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.modeling.layers import MultiheadAttention, init_xavier


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
    """Attention of queries (B, Q, C) to tokens (B, S, C) where their masks allow it, with residual and norm."""

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
        queries = queries + self.linear2(F.relu(self.linear1(x)))
        return queries if self.pre_norm else self.norm(queries)


def input_projection(in_channels: int, channels: int, *, enforce: bool) -> nn.Module:
    """Return a 1x1 convolution to the decoder's width; an identity if the map has it, unless ``enforce``."""
    if in_channels == channels and not enforce:
        return nn.Sequential()
    return init_xavier(nn.Conv2d(in_channels, channels, kernel_size=1))
