"""Layers that several components share."""

from mask2former.modeling.layers.attention import MultiheadAttention
from mask2former.modeling.layers.checkpointing import checkpoint_activations, run_checkpointed
from mask2former.modeling.layers.conv import Conv2d, init_xavier
from mask2former.modeling.layers.drop_path import DropPath
from mask2former.modeling.layers.feed_forward import feed_forward
from mask2former.modeling.layers.hooks import has_hooks
from mask2former.modeling.layers.linear import Linear, cast_once, linear
from mask2former.modeling.layers.mlp import MLP
from mask2former.modeling.layers.norms import (
    NORM_NAMES,
    FrozenBatchNorm2d,
    LayerNorm2d,
    NormSpec,
    SyncBatchNorm,
    freeze_batch_norm,
    get_norm,
)
from mask2former.modeling.layers.position_encoding import PositionEmbeddingSine, sine_position_encoding
from mask2former.modeling.layers.size_cache import SizeCache
from mask2former.modeling.layers.transformer import TransformerDecoder, TransformerEncoder, TransformerOptions

__all__ = [
    "MLP",
    "NORM_NAMES",
    "Conv2d",
    "DropPath",
    "FrozenBatchNorm2d",
    "LayerNorm2d",
    "Linear",
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
    "feed_forward",
    "freeze_batch_norm",
    "get_norm",
    "has_hooks",
    "init_xavier",
    "linear",
    "run_checkpointed",
    "sine_position_encoding",
]
