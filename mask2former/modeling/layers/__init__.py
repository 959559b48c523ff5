"""Layers that several components share."""

from torchvision.ops import StochasticDepth

from mask2former.modeling.layers.conv import Conv2d, fold_frozen_batch_norm
from mask2former.modeling.layers.mlp import MLP
from mask2former.modeling.layers.norms import (
    FrozenBatchNorm2d,
    LayerNorm2d,
    NormSpec,
    SyncBatchNorm,
    freeze_batch_norm,
    get_norm,
)
from mask2former.modeling.layers.position_encoding import PositionEmbeddingSine, sine_position_encoding
from mask2former.modeling.layers.size_cache import SizeCache

__all__ = [
    "MLP",
    "Conv2d",
    "DropPath",
    "FrozenBatchNorm2d",
    "LayerNorm2d",
    "NormSpec",
    "PositionEmbeddingSine",
    "SizeCache",
    "SyncBatchNorm",
    "fold_frozen_batch_norm",
    "freeze_batch_norm",
    "get_norm",
    "sine_position_encoding",
]


class DropPath(StochasticDepth):
    """Drops a residual branch of each sample with probability `p` in training (stochastic depth, Huang et al. 2016)."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__(p, mode="row")
