"""The plain transformer of DETR (section A.3): its encoder over image tokens, and its decoder of object queries.

Positions are added to queries and keys of every attention, never to values. Dropout acts in training alone. Attention
takes a boolean mask for all heads; its parameters are named as those of ``nn.MultiheadAttention``, which published
checkpoints hold; the product itself is PyTorch's fused attention.

Letters: B batch, Q queries, S tokens, C channels, M heads, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True)
class TransformerOptions:
    """Options of all layers of a transformer; with ``pre_norm`` norms stand before each step, not after it."""

    num_heads: int
    hidden_channels: int  # of the feed-forward network
    dropout: float = 0.0
    pre_norm: bool = False


class _TransformerLayer(nn.Module):
    """Self-attention and feed-forward network, with norm and residual around each step."""

    def __init__(self, channels: int, options: TransformerOptions) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(channels, options.num_heads, dropout=options.dropout)
        self.linear1 = nn.Linear(channels, options.hidden_channels)
        self.linear2 = nn.Linear(options.hidden_channels, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(options.dropout)
        self.pre_norm = options.pre_norm
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def _attend_self(self, x: Tensor, position: Tensor) -> Tensor:
        placed = x + position
        return self.self_attn(placed, placed, x)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(F.relu(self.linear1(x))))

    def _residual(self, x: Tensor, step: Callable[[Tensor], Tensor], norm: nn.Module) -> Tensor:
        if self.pre_norm:
            return x + self.dropout(step(norm(x)))
        return norm(x + self.dropout(step(x)))


class TransformerEncoderLayer(_TransformerLayer):
    """Self-attention among tokens, then the feed-forward network: (B, S, C) -> (B, S, C)."""

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        tokens = self._residual(tokens, lambda x: self._attend_self(x, position), self.norm1)
        return self._residual(tokens, self._feed_forward, self.norm2)


class TransformerDecoderLayer(_TransformerLayer):
    """Self-attention among queries, attention to tokens, feed-forward network: (B, Q, C) -> (B, Q, C)."""

    def __init__(self, channels: int, options: TransformerOptions) -> None:
        super().__init__(channels, options)
        self.multihead_attn = MultiheadAttention(channels, options.num_heads, dropout=options.dropout)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, queries: Tensor, query_position: Tensor, *, keys: Tensor, values: Tensor) -> Tensor:
        """``keys`` (B, S, C) are the tokens with their positions, ``values`` (B, S, C) without."""
        queries = self._residual(queries, lambda x: self._attend_self(x, query_position), self.norm1)
        queries = self._residual(queries, lambda x: self.multihead_attn(x + query_position, keys, values), self.norm2)
        return self._residual(queries, self._feed_forward, self.norm3)


class TransformerEncoder(nn.Module):
    """A stack of encoder layers: (B, S, C) -> (B, S, C). With ``pre_norm`` a norm follows the last one."""

    def __init__(self, channels: int, options: TransformerOptions, *, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerEncoderLayer(channels, options) for _ in range(num_layers))
        self.norm = nn.LayerNorm(channels) if options.pre_norm else nn.Identity()

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """``position`` (1, S, C) or (B, S, C) belongs to the tokens."""
        for layer in self.layers:
            tokens = layer(tokens, position)
        return self.norm(tokens)


class TransformerDecoder(nn.Module):
    """A stack of decoder layers; the output of each passes one shared norm."""

    def __init__(self, channels: int, options: TransformerOptions, *, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerDecoderLayer(channels, options) for _ in range(num_layers))
        self.norm = nn.LayerNorm(channels)

    def forward(
        self, query_position: Tensor, *, tokens: Tensor, position: Tensor, queries: Tensor | None = None
    ) -> list[Tensor]:
        """Return the queries (B, Q, C) after each layer.

        ``query_position`` (Q, C) belongs to ``queries``, which start as zeros if none are given; ``tokens`` (B, S, C).
        """
        keys = tokens + position
        if queries is None:
            queries = tokens.new_zeros((tokens.shape[0], *query_position.shape))
        outputs = []
        for layer in self.layers:
            queries = layer(queries, query_position, keys=keys, values=tokens)
            outputs.append(self.norm(queries))
        return outputs
