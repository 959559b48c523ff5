"""The multi-scale deformable attention encoder (Deformable DETR, section 4.1) over the maps of a backbone.

Letters: B batch, C channels, H W size, L levels, S tokens of all levels, M heads, D channels of a head, P points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.modeling.layers import SizeCache, cast_once, run_checkpointed
from mask2former.ops import ms_deform_attn_fused

Shapes = Sequence[tuple[int, int]]


class MSDeformAttn(nn.Module):
    """Each token samples a few points of every level around itself: (B, S, C) -> (B, S, C)."""

    def __init__(self, channels: int, *, num_levels: int, num_heads: int, num_points: int) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"channels must be divisible by heads: found {channels} channels, {num_heads} heads")
        self.num_levels = num_levels
        self.num_heads = num_heads
        self.num_points = num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(channels, 2 * samples)
        self.attention_weights = nn.Linear(channels, samples)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise each head with its own direction, each point one pixel further, all with equal weights."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)  # (M, 2)
        directions = directions / directions.abs().amax(-1, keepdim=True)  # onto the unit square's border
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = directions[:, None, None, :] * steps[:, None]  # (M, 1, P, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.num_levels, -1, -1).flatten())
        for layer in (self.attention_weights, self.value_proj, self.output_proj):
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.xavier_uniform_(self.value_proj.weight)
        nn.init.xavier_uniform_(self.output_proj.weight)

    def forward(self, query: Tensor, value: Tensor, *, centres: Tensor, shapes: Shapes) -> Tensor:
        """``query`` (B, Q, C), ``value`` (B, S, C) of all tokens; ``shapes`` are L pairs (H, W).

        ``centres`` (Q, 2) of the queries are x, y in 0..1 of the extent, float32.
        """
        return self.attend(query, self.heads_of(value), centres=centres, shapes=shapes)

    def heads_of(self, value: Tensor) -> Tensor:
        """Return the values (B, S, M, D) that all queries sample, from tokens (B, S, C)."""
        return self.value_proj(value).unflatten(-1, (self.num_heads, -1))

    def attend(self, query: Tensor, heads: Tensor, *, centres: Tensor, shapes: Shapes) -> Tensor:
        """Do what ``forward`` does, given the heads' values (B, S, M, D); the queries may be a part of all."""
        query = cast_once(query)
        grid = (*query.shape[:2], self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).view(*grid, 2)
        logits = self.attention_weights(query).view(grid)
        return self.output_proj(ms_deform_attn_fused(heads, shapes, centres=centres, offsets=offsets, logits=logits))


class MSDeformAttnEncoderLayer(nn.Module):
    """Deformable attention and a feed-forward network, each with residual and norm: (B, S, C) -> (B, S, C)."""

    def __init__(
        self,
        channels: int,
        *,
        num_levels: int,
        num_heads: int,
        num_points: int,
        hidden_channels: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(channels, num_levels=num_levels, num_heads=num_heads, num_points=num_points)
        self.norm1 = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, hidden_channels)
        self.linear2 = nn.Linear(hidden_channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, tokens: Tensor, position: Tensor, *, centres: Tensor, shapes: Shapes) -> Tensor:
        """``tokens`` (B, S, C), ``position`` (1, S, C); ``centres`` and ``shapes`` as in ``MSDeformAttn``."""
        attended = self.self_attn(tokens + position, tokens, centres=centres, shapes=shapes)
        tokens = self.norm1(tokens + self.dropout(attended))
        return self.norm2(tokens + self.dropout(self.feed_forward(tokens)))

    def feed_forward(self, tokens: Tensor) -> Tensor:
        """Compute two linear layers with ReLU and dropout between them: (..., C) -> (..., C)."""
        return self.linear2(self.dropout(F.relu(self.linear1(tokens))))


class MSDeformAttnEncoder(nn.Module):
    """A stack of encoder layers: (B, S, C) -> (B, S, C)."""

    def __init__(self, layers: Sequence[MSDeformAttnEncoderLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.use_checkpoint = False  # keeps less in training; each layer is then computed twice
        self._centres = SizeCache()

    def forward(self, tokens: Tensor, position: Tensor, *, shapes: Shapes) -> Tensor:
        """``tokens`` (B, S, C), ``position`` (1, S, C), ``shapes``: (H, W) of each level in the order of the tokens."""
        centres = self.centres(shapes, device=tokens.device)
        enabled = self.use_checkpoint and self.training
        for layer in self.layers:
            tokens = run_checkpointed(layer, tokens, position, enabled=enabled, centres=centres, shapes=shapes)
        return tokens

    def centres(self, shapes: Shapes, *, device: torch.device) -> Tensor:
        """Return ``pixel_centres``, cached between calls."""
        return self._centres.get((tuple(shapes), device), lambda: pixel_centres(shapes, device=device))


def pixel_centres(shapes: Shapes, *, device: torch.device) -> Tensor:
    """Return centres (S, 2) float32 of the pixels of all levels, as x, y in 0..1 of each level's own extent."""
    levels = []
    for height, width in shapes:
        rows = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        columns = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        y, x = torch.meshgrid(rows, columns, indexing="ij")  # (H, W)
        levels.append(torch.stack((x, y), dim=-1).flatten(0, 1))  # (HW, 2)
    return torch.cat(levels)
