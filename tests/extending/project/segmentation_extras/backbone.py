from itertools import pairwise

from torch import nn

from mask2former.config import register_keys
from mask2former.modeling import BACKBONE_REGISTRY
from mask2former.modeling.backbone import Backbone
from mask2former.structures import ShapeSpec

register_keys({"MODEL": {"STAIRS": {"WIDTH": 16}}})


@BACKBONE_REGISTRY.register()
class Stairs(Backbone):
    """Convolutions of stride 2, whose outputs from stride 4 on are the features res2 to res5."""

    def __init__(self, *, in_channels, width):
        features = {f"res{i}": ShapeSpec(channels=width, stride=2**i) for i in (2, 3, 4, 5)}
        super().__init__(features, out_features=tuple(features))
        widths = [in_channels, *[width] * 5]
        self.steps = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1) for before, after in pairwise(widths)
        )

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {"in_channels": input_shape.channels, "width": cfg.MODEL.STAIRS.WIDTH}

    def forward(self, x):  # (N, 3, H, W)
        features = {}
        for number, step in enumerate(self.steps, start=1):
            x = step(x).relu()
            features[f"res{number}"] = x  # (N, C, ceil(H / 2 ** number), ceil(W / 2 ** number))
        return {name: features[name] for name in self.out_features}
