"""The interface of backbones, and building one from a config.

Letters: N batch (frames are folded into it), C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mask2former.errors import ConfigError
from mask2former.modeling.registry import BACKBONE_REGISTRY, build_from_config
from mask2former.structures import ShapeSpec


class Backbone(nn.Module):
    """Map images (N, 3, H, W) to named feature maps {name: (N, C, ceil(H / stride), ceil(W / stride))}.

    The sides of the input should be multiples of ``size_divisibility``; 0: any size.
    """

    size_divisibility: int = 0

    def __init__(self, features: Mapping[str, ShapeSpec], *, out_features: Sequence[str]) -> None:
        """``features`` lists what the backbone can return, ``out_features`` names those that it does."""
        super().__init__()
        unknown = [name for name in out_features if name not in features]
        if unknown or not out_features:
            raise ConfigError(f"out_features: expected some of {', '.join(features)}; found {list(out_features)}")
        self.out_features = tuple(out_features)
        self._features = dict(features)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the features named in ``out_features``."""
        raise NotImplementedError

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of each feature that ``forward`` returns."""
        return {name: self._features[name] for name in self.out_features}

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Return the padding that detectron2's models apply besides ``size_divisibility``: none."""
        return {}

    def parameter_layers(self) -> dict[str, int]:
        """Return the layer index of each parameter by name, 0 nearest the input, for layer-wise learning rate decay.

        By default each direct child, and each entry of a list of modules, is a layer. Parameters that are not returned
        keep their rate.
        """
        layers: dict[str, int] = {}
        parts = [
            (f"{name}.{index}", part) if isinstance(child, nn.ModuleList) else (name, child)
            for name, child in self.named_children()
            for index, part in (enumerate(child) if isinstance(child, nn.ModuleList) else [(0, child)])
        ]
        parts = [(name, part) for name, part in parts if next(part.parameters(), None) is not None]
        for layer, (name, part) in enumerate(parts):
            layers.update({f"{name}.{parameter}": layer for parameter, _ in part.named_parameters()})
        return layers

    def undecayed_parameters(self) -> set[str]:
        """Return names of parameters without weight decay, in addition to those of every recipe."""
        return set()


def build_backbone(cfg: Any, input_shape: ShapeSpec | None = None) -> Backbone:
    """Return the backbone that MODEL.BACKBONE.NAME names.

    Its input has ``input_shape.channels``, by default one for each value of MODEL.PIXEL_MEAN.
    """
    if input_shape is None:
        input_shape = ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    return build_from_config(BACKBONE_REGISTRY.lookup(cfg.MODEL.BACKBONE.NAME), cfg, input_shape)
