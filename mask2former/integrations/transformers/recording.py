"""The transformer decoder with what transformers' outputs show of it: hidden states and attention weights.

Letters: B batch, Q queries, S tokens, C channels, M heads, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.modeling import MultiScaleMaskedTransformerDecoder
from mask2former.modeling.layers import MultiheadAttention
from mask2former.modeling.prediction import QueryPrediction


class DecoderRecord(NamedTuple):
    """Predictions, queries before each layer and after the last (Q, B, C), self-attention of each layer (B, M, Q, Q).

    The predictions' class logits are the normed queries (B, Q, C): classes are left to the head.
    """

    predictions: list[QueryPrediction]
    hidden_states: tuple[Tensor, ...]
    attentions: tuple[Tensor, ...] | None


class RecordingAttention(MultiheadAttention):
    """Attention that is written out, and keeps its weights (B, M, Q, S) in ``weights``, while it is asked to."""

    is_recording = False
    weights: Tensor | None = None

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attend_mask: Tensor | None = None) -> Tensor:
        """As fused attention computes it; only without a mask while it is recording."""
        if not self.is_recording:
            return super().forward(query, key, value, attend_mask)
        assert attend_mask is None, "only self-attention is recorded"
        projections = zip(self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), (query, key, value), strict=True)
        queries, keys, values = (self._split_heads(F.linear(x, weight, bias)) for weight, bias, x in projections)
        self.weights = (queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5).softmax(-1)  # (B, M, Q, S)
        return self.out_proj((self.weights @ values).transpose(1, 2).flatten(2))


class RecordingDecoder(MultiScaleMaskedTransformerDecoder):
    """The masked decoder without classes, which also returns its hidden states and attention weights."""

    def __init__(self, in_channels: int, **options: Any) -> None:
        super().__init__(in_channels, **options)
        self.class_embed = nn.Identity()  # type: ignore[assignment]
        for layer in self._self_attention_layers():
            layer.self_attn = RecordingAttention(layer.self_attn.embed_dim, layer.self_attn.num_heads)
        self._states: list[Tensor] | None = None

    def record(self, maps: Sequence[Tensor], mask_features: Tensor, *, with_attentions: bool) -> DecoderRecord:
        """As ``forward``, of images; where weights are asked for, fused attention and checkpointing are given up."""
        attentions = [layer.self_attn for layer in self._self_attention_layers()]
        use_checkpoint = self.use_checkpoint
        self.use_checkpoint = use_checkpoint and not with_attentions
        self._states = []
        for attention in attentions:
            attention.is_recording = with_attentions
        try:
            predictions = self(maps, mask_features)
            weights = tuple(attention.weights for attention in attentions) if with_attentions else None
            return DecoderRecord(predictions, tuple(self._states), weights)
        finally:
            self.use_checkpoint, self._states = use_checkpoint, None
            for attention in attentions:
                attention.is_recording, attention.weights = False, None

    def _self_attention_layers(self) -> list[Any]:
        return list(self.transformer_self_attention_layers)

    def _predict(self, queries: Tensor, mask_features: Tensor) -> QueryPrediction:
        if self._states is not None and len(self._states) == len(self.transformer_ffn_layers):  # the last layer's
            self._states.append(queries.transpose(0, 1))
        return super()._predict(queries, mask_features)

    def _decode(self, queries: Tensor, index: int, *args: Tensor) -> Tensor:
        state = queries.transpose(0, 1)  # (Q, B, C), through which gradients pass on their way back
        if self._states is not None:  # it is None while the layer is computed again for its gradients
            self._states.append(state)
        return super()._decode(state.transpose(0, 1), index, *args)
