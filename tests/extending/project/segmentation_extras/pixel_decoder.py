from torch import nn
from torch.nn.functional import interpolate

from mask2former.modeling import SEM_SEG_HEADS_REGISTRY


@SEM_SEG_HEADS_REGISTRY.register()
class SumDecoder(nn.Module):
    """Brings all maps to one width; mask features are made of their sum at stride 4."""

    def __init__(self, *, in_channels, width, mask_width):
        super().__init__()
        self.project = nn.ModuleDict({name: nn.Conv2d(c, width, kernel_size=1) for name, c in in_channels.items()})
        self.to_masks = nn.Conv2d(width, mask_width, kernel_size=1)

    @classmethod
    def from_config(cls, cfg, input_shape):
        head = cfg.MODEL.SEM_SEG_HEAD
        in_channels = {name: input_shape[name].channels for name in sorted(head.IN_FEATURES)}  # res2 to res5
        return {"in_channels": in_channels, "width": head.CONVS_DIM, "mask_width": head.MASK_DIM}

    def forward_features(self, features):
        maps = [project(features[name]) for name, project in self.project.items()]
        total = sum(interpolate(m, size=maps[0].shape[-2:], mode="bilinear", align_corners=False) for m in maps)
        # Mask features, the map of an encoder (there is none), and the maps that queries look at, the smallest first.
        return self.to_masks(total), None, maps[:0:-1]
