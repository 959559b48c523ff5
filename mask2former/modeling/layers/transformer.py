"""The plain transformer of DETR (section A.3): its encoder over image tokens, and its decoder of object queries.

Positions are added to queries and keys of every attention, never to values. Dropout acts in training alone.

Letters: B batch, Q queries, S tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.modeling.layers.attention import MultiheadAttention


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

    def forward(self, query_position: Tensor, *, tokens: Tensor, position: Tensor) -> list[Tensor]:
        """Return the queries (B, Q, C) after each layer.

        ``query_position`` (Q, C) belongs to queries that start as zeros; ``tokens`` (B, S, C).
        """
        keys = tokens + position
        queries = tokens.new_zeros((tokens.shape[0], *query_position.shape))
        outputs = []
        for layer in self.layers:
            queries = layer(queries, query_position, keys=keys, values=tokens)
            outputs.append(self.norm(queries))
        return outputs
