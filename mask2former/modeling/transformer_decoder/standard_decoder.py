"""The transformer decoder of MaskFormer (Cheng et al. 2021, section 3.3), which is DETR's, for images and for clips.

Queries attend to one map, everywhere, in every layer. A clip is one set of tokens over all frames.

Letters: B batch, T frames, Q queries, K classes, C channels, H W size, S tokens (T h w).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mask2former.errors import ConfigError
from mask2former.modeling.layers import (
    MLP,
    PositionEmbeddingSine,
    TransformerDecoder,
    TransformerEncoder,
    TransformerOptions,
)
from mask2former.modeling.prediction import QueryPrediction
from mask2former.modeling.registry import TRANSFORMER_DECODER_REGISTRY
from mask2former.modeling.transformer_decoder.attention import input_projection


@TRANSFORMER_DECODER_REGISTRY.register()
class StandardTransformerDecoder(nn.Module):
    """Maps one map and the mask features to a prediction after each layer."""

    def __init__(
        self,
        in_channels: int,
        *,
        num_classes: int | None,
        hidden_dim: int,
        num_queries: int,
        nheads: int,
        dim_feedforward: int,
        enc_layers: int,
        dec_layers: int,
        pre_norm: bool,
        mask_dim: int,
        dropout: float = 0.0,
        enforce_input_project: bool = False,
        deep_supervision: bool = True,
    ) -> None:
        """``num_classes`` None: queries stand for classes themselves, and class logits are empty (B, Q, 0).

        ``enc_layers`` come before the decoder; without ``deep_supervision`` only the last prediction is returned.
        """
        super().__init__()
        self.num_queries = num_queries
        self.deep_supervision = deep_supervision
        self.position = PositionEmbeddingSine(hidden_dim // 2, normalize=True)
        self.input_proj = input_projection(in_channels, hidden_dim, enforce=enforce_input_project)
        options = TransformerOptions(nheads, dim_feedforward, dropout=dropout, pre_norm=pre_norm)
        self.transformer = nn.ModuleDict(
            {
                "encoder": TransformerEncoder(hidden_dim, options, num_layers=enc_layers),
                "decoder": TransformerDecoder(hidden_dim, options, num_layers=dec_layers),
            }
        )
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.class_embed = None if num_classes is None else nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)

    @classmethod
    def from_config(cls, cfg: Any, in_channels: int) -> dict[str, Any]:
        """Return arguments from MODEL.MASK_FORMER and MODEL.SEM_SEG_HEAD; the map has ``in_channels``."""
        mask_former, head = cfg.MODEL.MASK_FORMER, cfg.MODEL.SEM_SEG_HEAD
        if mask_former.TRANSFORMER_IN_FEATURE == "multi_scale_pixel_decoder":
            raise ConfigError(
                f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE: {cls.__name__} expects one map (a feature of the backbone, "
                "'transformer_encoder' or 'pixel_embedding'), found 'multi_scale_pixel_decoder'"
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
            "enc_layers": mask_former.ENC_LAYERS,
            # Parity: here each layer counts, for nothing is predicted before the first.
            "dec_layers": mask_former.DEC_LAYERS,
            "pre_norm": mask_former.PRE_NORM,
            "mask_dim": head.MASK_DIM,
            "dropout": mask_former.DROPOUT,
            "enforce_input_project": mask_former.ENFORCE_INPUT_PROJ,
            "deep_supervision": mask_former.DEEP_SUPERVISION,
        }

    def forward(self, features: Tensor, mask_features: Tensor, *, num_frames: int = 1) -> list[QueryPrediction]:
        """Return predictions, the final one last, from a map (BT, C, h, w) and mask features (BT, C, H, W)."""
        mask_features = mask_features.unflatten(0, (-1, num_frames))  # (B, T, C, H, W)
        maps = self.input_proj(features).unflatten(0, (-1, num_frames))  # (B, T, C, h, w)
        position = _clip_to_tokens(self.position(maps))
        tokens = self.transformer["encoder"](_clip_to_tokens(maps), position)
        layers = self.transformer["decoder"](self.query_embed.weight, tokens=tokens, position=position)
        wanted = layers if self.deep_supervision else layers[-1:]
        return [self._predict(queries, mask_features) for queries in wanted]

    def _predict(self, queries: Tensor, mask_features: Tensor) -> QueryPrediction:
        class_logits = queries[..., :0] if self.class_embed is None else self.class_embed(queries)
        return QueryPrediction(class_logits, self.mask_embed(queries), mask_features)


def _clip_to_tokens(maps: Tensor) -> Tensor:
    return maps.flatten(3).transpose(2, 3).flatten(1, 2)  # (B, T, C, h, w) -> (B, T, hw, C) -> (B, S, C)
