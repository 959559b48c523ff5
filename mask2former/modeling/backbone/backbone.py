"""What every backbone promises, and how a config chooses one.

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
    """Maps images (N, 3, H, W) to named feature maps {name: (N, C, ceil(H / stride), ceil(W / stride))}.

    `size_divisibility` is what the sides of the input should be multiples of, 0 where any size will do.
    """

    size_divisibility: int = 0

    def __init__(self, features: Mapping[str, ShapeSpec], *, out_features: Sequence[str]) -> None:
        """`features` lists what the backbone could return, `out_features` what is wanted of it."""
        super().__init__()
        unknown = [name for name in out_features if name not in features]
        if unknown or not out_features:
            raise ConfigError(f"out_features: expected some of {', '.join(features)}; found {list(out_features)}")
        self.out_features = tuple(out_features)
        self._features = dict(features)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The features named in `out_features`."""
        raise NotImplementedError

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each feature that `forward` returns."""
        return {name: self._features[name] for name in self.out_features}

    @property
    def padding_constraints(self) -> dict[str, int]:
        """What detectron2's models ask of a backbone beside `size_divisibility`: nothing else is required here."""
        return {}

    def parameter_layers(self) -> dict[str, int]:
        """The layer of each parameter by its name, 0 nearest the input, for learning rates that fall towards it.

        Here each direct child is a layer, and each entry of a list of modules; a parameter left out keeps its rate.
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
        """Names of parameters without weight decay, beside those that every recipe leaves without."""
        return set()


def build_backbone(cfg: Any, input_shape: ShapeSpec | None = None) -> Backbone:
    """The backbone that MODEL.BACKBONE.NAME names; by default its input has as many channels as MODEL.PIXEL_MEAN."""
    if input_shape is None:
        input_shape = ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    return build_from_config(BACKBONE_REGISTRY.lookup(cfg.MODEL.BACKBONE.NAME), cfg, input_shape)
