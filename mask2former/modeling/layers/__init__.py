"""Layers that several components use."""

from mask2former.modeling.layers.blocks import (
    MLP,
    Conv2d,
    DropPath,
    cast_once,
    checkpoint_activations,
    init_xavier,
    run_checkpointed,
)
from mask2former.modeling.layers.norms import (
    NORM_NAMES,
    FrozenBatchNorm2d,
    LayerNorm2d,
    NormSpec,
    SyncBatchNorm,
    freeze_batch_norm,
    get_norm,
)
from mask2former.modeling.layers.position_encoding import PositionEmbeddingSine, SizeCache, sine_position_encoding
from mask2former.modeling.layers.transformer import (
    MultiheadAttention,
    TransformerDecoder,
    TransformerEncoder,
    TransformerOptions,
)

__all__ = [
    "MLP",
    "NORM_NAMES",
    "Conv2d",
    "DropPath",
    "FrozenBatchNorm2d",
    "LayerNorm2d",
    "MultiheadAttention",
    "NormSpec",
    "PositionEmbeddingSine",
    "SizeCache",
    "SyncBatchNorm",
    "TransformerDecoder",
    "TransformerEncoder",
    "TransformerOptions",
    "cast_once",
    "checkpoint_activations",
    "freeze_batch_norm",
    "get_norm",
    "init_xavier",
    "run_checkpointed",
    "sine_position_encoding",
]
