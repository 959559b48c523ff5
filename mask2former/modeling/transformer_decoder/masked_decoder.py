"""The masked-attention transformer decoder (Mask2Former, section 3.2), for images and for clips.

Queries attend to the three maps of the pixel decoder in turn, from low to high resolution, and each only inside its own
mask of the layer before. A clip is one set of tokens over all frames; an image is a clip of one frame.

Letters: B batch, T frames, Q queries, K classes, C channels, H W size, L levels, S tokens of a level (T h w).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.errors import ConfigError
from mask2former.modeling.layers import MLP, PositionEmbeddingSine, cast_once, run_checkpointed
from mask2former.modeling.prediction import QueryPrediction
from mask2former.modeling.registry import TRANSFORMER_DECODER_REGISTRY
from mask2former.modeling.transformer_decoder.attention import (
    CrossAttentionLayer,
    FeedForwardLayer,
    SelfAttentionLayer,
    input_projection,
)
from mask2former.ops import multiply_maps

NUM_LEVELS = 3


@TRANSFORMER_DECODER_REGISTRY.register()
class MultiScaleMaskedTransformerDecoder(nn.Module):
    """Maps three maps and the mask features to one prediction before the first layer and one after each layer."""

    def __init__(
        self,
        in_channels: int,
        *,
        num_classes: int,
        hidden_dim: int,
        num_queries: int,
        nheads: int,
        dim_feedforward: int,
        dec_layers: int,
        pre_norm: bool,
        mask_dim: int,
        enforce_input_project: bool = False,
        deep_supervision: bool = True,
    ) -> None:
        """``dec_layers`` counts attention layers; without ``deep_supervision`` only the last prediction is returned."""
        super().__init__()
        self.num_queries = num_queries
        self.deep_supervision = deep_supervision
        self.use_checkpoint = False  # keeps less in training; each layer is then computed twice
        self.position = PositionEmbeddingSine(hidden_dim // 2, normalize=True)
        layers = range(dec_layers)
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(hidden_dim, nheads, pre_norm=pre_norm) for _ in layers
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(hidden_dim, nheads, pre_norm=pre_norm) for _ in layers
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForwardLayer(hidden_dim, dim_feedforward, pre_norm=pre_norm) for _ in layers
        )
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(NUM_LEVELS, hidden_dim)
        self.input_proj = nn.ModuleList(
            input_projection(in_channels, hidden_dim, enforce=enforce_input_project) for _ in range(NUM_LEVELS)
        )
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)

    @classmethod
    def from_config(cls, cfg: Any, in_channels: int) -> dict[str, Any]:
        """Return arguments from MODEL.MASK_FORMER and MODEL.SEM_SEG_HEAD; the three maps have ``in_channels``."""
        mask_former, head = cfg.MODEL.MASK_FORMER, cfg.MODEL.SEM_SEG_HEAD
        if mask_former.TRANSFORMER_IN_FEATURE != "multi_scale_pixel_decoder":
            raise ConfigError(
                f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE: {cls.__name__} expects 'multi_scale_pixel_decoder', "
                f"found {mask_former.TRANSFORMER_IN_FEATURE!r}"
            )
        if mask_former.DEC_LAYERS < 1:
            raise ConfigError(f"MODEL.MASK_FORMER.DEC_LAYERS: expected at least 1, found {mask_former.DEC_LAYERS}")
        return {
            "in_channels": in_channels,
            "num_classes": head.NUM_CLASSES,
            "hidden_dim": mask_former.HIDDEN_DIM,
            "num_queries": mask_former.NUM_OBJECT_QUERIES,
            "nheads": mask_former.NHEADS,
            "dim_feedforward": mask_former.DIM_FEEDFORWARD,
            # Parity: the config counts predictions, and there is one before the first layer.
            "dec_layers": mask_former.DEC_LAYERS - 1,
            "pre_norm": mask_former.PRE_NORM,
            "mask_dim": head.MASK_DIM,
            "enforce_input_project": mask_former.ENFORCE_INPUT_PROJ,
            "deep_supervision": mask_former.DEEP_SUPERVISION,
        }

    def forward(
        self, multi_scale_features: Sequence[Tensor], mask_features: Tensor, *, num_frames: int = 1
    ) -> list[QueryPrediction]:
        """Return predictions, final last, of maps (BT, C, h, w), coarse first, and mask features (BT, C, H, W)."""
        # Not of len(), which is a number where a graph is traced, and binds its batch.
        queries = self.query_feat.weight.expand(mask_features.shape[0] // num_frames, -1, -1)
        return self.decode(queries, multi_scale_features, mask_features, num_frames=num_frames)

    def decode(
        self, queries: Tensor, multi_scale_features: Sequence[Tensor], mask_features: Tensor, *, num_frames: int = 1
    ) -> list[QueryPrediction]:
        """Return the same of queries (B, Q, C)."""
        mask_features = mask_features.unflatten(0, (-1, num_frames))  # (B, T, C, H, W)
        levels = [self._tokens(level, features, num_frames) for level, features in enumerate(multi_scale_features)]
        masks_at = [resize_to_tokens(mask_features.detach(), features.shape[-2:]) for features in multi_scale_features]
        predictions = [self._predict(queries, mask_features)]
        for index in range(len(self.transformer_cross_attention_layers)):
            level = index % NUM_LEVELS
            attend_mask = attention_mask(predictions[-1].mask_embed, masks_at[level])
            enabled = self.use_checkpoint and self.training
            queries = run_checkpointed(self._decode, queries, index, *levels[level], attend_mask, enabled=enabled)
            predictions.append(self._predict(queries, mask_features))
        return predictions if self.deep_supervision else predictions[-1:]

    def _decode(self, queries: Tensor, index: int, keys: Tensor, values: Tensor, attend_mask: Tensor) -> Tensor:
        """Return queries (B, Q, C) after the layer of this index, which attends to keys and values (B, S, C)."""
        position = self.query_embed.weight
        cross_attention = self.transformer_cross_attention_layers[index]
        queries = cross_attention(queries, position, keys=keys, values=values, attend_mask=attend_mask)
        queries = self.transformer_self_attention_layers[index](queries, position)
        return self.transformer_ffn_layers[index](queries)

    def _tokens(self, level: int, features: Tensor, num_frames: int) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, S, C) of a map (BT, C, h, w); keys include the position."""
        features = self.input_proj[level](features)
        place = self.position(features.unflatten(0, (-1, num_frames)))  # (1, T, C, h, w)
        values = features.flatten(2).transpose(1, 2).unflatten(0, (-1, num_frames)).flatten(1, 2)  # (B, S, C)
        values = values + self.level_embed.weight[level]
        keys = values + place.flatten(3).transpose(2, 3).flatten(1, 2)
        return cast_once(keys), cast_once(values)  # for every third layer

    def _predict(self, queries: Tensor, mask_features: Tensor) -> QueryPrediction:
        normed = self.decoder_norm(queries)
        return QueryPrediction(self.class_embed(normed), self.mask_embed(normed), mask_features)


# The published name of the same decoder in video configs.
TRANSFORMER_DECODER_REGISTRY.register(
    MultiScaleMaskedTransformerDecoder, name="VideoMultiScaleMaskedTransformerDecoder"
)


def resize_to_tokens(mask_features: Tensor, size: Sequence[int]) -> Tensor:
    """Return mask features (B, T, C, H, W), resized to a level's (h, w), as a matrix (B, C, S).

    Resizing is linear over space and the mask product over channels, so resizing the features once replaces resizing
    every query's full mask in every layer.
    """
    resized = F.interpolate(mask_features.flatten(0, 1), size=tuple(size), mode="bilinear", align_corners=False)
    num_batch, num_frames = mask_features.shape[:2]
    tokens = resized.flatten(2).unflatten(0, (num_batch, num_frames))  # (B, T, C, hw)
    return tokens.transpose(1, 2).flatten(2)


@torch.no_grad()
def attention_mask(mask_embed: Tensor, features_at_level: Tensor) -> Tensor:
    """Return where each query may attend, (B, 1, Q, S) bool: where its mask probability is at least one half.

    The mask is the product of ``mask_embed`` (B, Q, C) and ``features_at_level`` (B, C, S).
    """
    attend_mask = multiply_maps(mask_embed, features_at_level) >= 0  # sigmoid(x) < 0.5 is x < 0
    # Parity: a row that is masked everywhere attends everywhere (test_transformer_decoder_empty_masks_attend_all).
    attend_mask = attend_mask | ~attend_mask.any(dim=-1, keepdim=True)
    return attend_mask[:, None]
