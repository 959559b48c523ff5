"""The transformer decoder of OneFormer (Jain et al., CVPR 2023): queries are made of the task and the image.

A small decoder, the class transformer, turns copies of the task token into queries; the masked decoder of Mask2Former
goes on from them. The token itself is the last query.

Letters: B batch, T frames, Q queries, K classes, C channels, H W size, S tokens (H W).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mask2former.errors import ConfigError
from mask2former.modeling.layers import TransformerDecoder, TransformerOptions
from mask2former.modeling.prediction import QueryPrediction
from mask2former.modeling.registry import TRANSFORMER_DECODER_REGISTRY
from mask2former.modeling.transformer_decoder.masked_decoder import MultiScaleMaskedTransformerDecoder


@TRANSFORMER_DECODER_REGISTRY.register()
class ContrastiveMultiScaleMaskedTransformerDecoder(MultiScaleMaskedTransformerDecoder):
    """The masked decoder, whose first queries are those of ``initial_queries`` instead of learned features."""

    def __init__(
        self,
        in_channels: int,
        *,
        hidden_dim: int,
        nheads: int,
        dim_feedforward: int,
        mask_dim: int,
        class_dec_layers: int,
        dropout: float = 0.0,
        use_task_norm: bool = True,
        **options: Any,
    ) -> None:
        """``class_dec_layers`` and ``dropout`` are of the class transformer.

        Without ``use_task_norm`` its queries start from zeros, and the task token is not normalised.
        """
        super().__init__(
            in_channels,
            hidden_dim=hidden_dim,
            nheads=nheads,
            dim_feedforward=dim_feedforward,
            mask_dim=mask_dim,
            **options,
        )
        del self.query_feat
        self.use_task_norm = use_task_norm
        layers = TransformerOptions(nheads, dim_feedforward, dropout=dropout, pre_norm=options["pre_norm"])
        decoder = TransformerDecoder(hidden_dim, layers, num_layers=class_dec_layers)
        self.class_transformer = nn.ModuleDict({"decoder": decoder})
        self.class_input_proj = nn.Conv2d(mask_dim, hidden_dim, kernel_size=1)
        nn.init.kaiming_uniform_(self.class_input_proj.weight, a=1)
        nn.init.zeros_(self.class_input_proj.bias)  # type: ignore[arg-type]

    @classmethod
    def from_config(cls, cfg: Any, in_channels: int) -> dict[str, Any]:
        """Return the arguments of the masked decoder, and those of MODEL.ONE_FORMER for the class transformer."""
        options = cfg.MODEL.ONE_FORMER
        if options.ENC_LAYERS:
            raise ConfigError(f"MODEL.ONE_FORMER.ENC_LAYERS: expected 0, found {options.ENC_LAYERS}")
        return {
            **super().from_config(cfg, in_channels),
            "class_dec_layers": options.CLASS_DEC_LAYERS,
            "dropout": options.DROPOUT,
            "use_task_norm": options.USE_TASK_NORM,
        }

    def initial_queries(self, task: Tensor, mask_features: Tensor) -> Tensor:
        """Return queries (B, Q, C) of task embeddings (B, C) and mask features (B, C, H, W); the last is the task."""
        if self.use_task_norm:
            # Parity: the norm is that of the prediction heads (test_head_outputs_match).
            task = self.decoder_norm(task)
        task = task[:, None]  # (B, 1, C)
        place = self.position(mask_features[:, None]).flatten(3).mT[:, 0]  # (1, S, C)
        # Parity: what is attended to is the position, and the image stands where positions would: it acts through the
        # attention weights alone (test_contrastive_decoder_attends_to_positions).
        image = self.class_input_proj(mask_features).flatten(2).mT  # (B, S, C)
        others = self.num_queries - 1
        queries = task.expand(-1, others, -1) if self.use_task_norm else torch.zeros_like(task).expand(-1, others, -1)
        made = self.class_transformer["decoder"](
            self.query_embed.weight[:others],
            tokens=place.to(image.dtype).expand(image.shape[0], -1, -1),
            position=image,
            queries=queries,
        )[-1]
        return torch.cat((made, task.to(made.dtype)), 1)

    def forward(
        self, multi_scale_features: Sequence[Tensor], mask_features: Tensor, *, num_frames: int = 1
    ) -> list[QueryPrediction]:
        """Refuse a call without a task; ``decode`` takes the queries of ``initial_queries``."""
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE: {type(self).__name__} needs to be told the task, expected OneFormer"
        )
