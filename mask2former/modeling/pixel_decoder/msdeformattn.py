"""The pixel decoder of Mask2Former (section 3.2.2): deformable attention over the deeper maps, then a small pyramid.

Letters: N images (batch times frames), C channels, H W size, L levels, S tokens of all levels.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.errors import ConfigError
from mask2former.modeling.layers import Conv2d, PositionEmbeddingSine, get_norm, init_xavier
from mask2former.modeling.pixel_decoder.deformable_encoder import MSDeformAttnEncoder, MSDeformAttnEncoderLayer
from mask2former.modeling.pixel_decoder.fpn import (
    NUM_MAPS,
    channels_of,
    in_features_of,
    map_to_tokens,
    pyramid_level,
    stride_of,
)
from mask2former.modeling.registry import SEM_SEG_HEADS_REGISTRY
from mask2former.structures import ShapeSpec

_FLOAT32_TRAINING = ("never", "float16", "always")
_FEED_FORWARD_CHANNELS = 1024  # Mask2Former, appendix: the pixel decoder's own, whatever DIM_FEEDFORWARD says


class DeformableTransformer(nn.Module):
    """Runs the encoder on the maps of several levels as one sequence of tokens."""

    def __init__(self, channels: int, *, num_levels: int, encoder: MSDeformAttnEncoder) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.randn(num_levels, channels))
        self.encoder = encoder

    def forward(self, maps: list[Tensor], positions: list[Tensor]) -> list[Tensor]:
        """Map (N, C, h, w) of each level, with encodings (1, C, h, w), to maps of the same shapes."""
        shapes = [(features.shape[-2], features.shape[-1]) for features in maps]
        tokens = torch.cat([map_to_tokens(features) for features in maps], dim=1)  # (N, S, C)
        places = [map_to_tokens(place) + embed for place, embed in zip(positions, self.level_embed, strict=True)]
        tokens = self.encoder(tokens, torch.cat(places, dim=1), shapes=shapes)
        levels = tokens.split([height * width for height, width in shapes], dim=1)
        return [level.transpose(1, 2).unflatten(-1, shape) for level, shape in zip(levels, shapes, strict=True)]


@SEM_SEG_HEADS_REGISTRY.register()
class MSDeformAttnPixelDecoder(nn.Module):
    """Maps backbone features to mask features at ``common_stride`` and to the maps that queries attend to."""

    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        transformer_in_features: list[str],
        transformer_enc_layers: int,
        transformer_nheads: int,
        transformer_num_points: int = 4,
        transformer_dim_feedforward: int = _FEED_FORWARD_CHANNELS,
        transformer_dropout: float = 0.0,
        conv_dim: int = 256,
        mask_dim: int = 256,
        norm: str = "GN",
        common_stride: int = 4,
        float32_training: str = "never",
    ) -> None:
        """``input_shape`` holds channels and stride of each map; those of the transformer must be among them.

        ``float32_training``: under which autocast training computes in float32: never, float16 or always.
        """
        super().__init__()
        if float32_training not in _FLOAT32_TRAINING:
            names = ", ".join(_FLOAT32_TRAINING)
            raise ConfigError(f"SOLVER.AMP.PIXEL_DECODER_FLOAT32 must be one of {names}, found {float32_training!r}")
        self.float32_training = float32_training
        by_stride = sorted(input_shape, key=lambda name: stride_of(input_shape, name))
        # From low to high resolution, as everything behind the transformer is ordered.
        self.transformer_in_features = [name for name in reversed(by_stride) if name in transformer_in_features]
        num_levels = len(self.transformer_in_features)
        self.input_proj = nn.ModuleList(
            _project_to_tokens(channels_of(input_shape, name), conv_dim) for name in self.transformer_in_features
        )
        layer = partial(
            MSDeformAttnEncoderLayer,
            conv_dim,
            num_levels=num_levels,
            num_heads=transformer_nheads,
            num_points=transformer_num_points,
            hidden_channels=transformer_dim_feedforward,
            dropout=transformer_dropout,
        )
        layers = [layer() for _ in range(transformer_enc_layers)]
        self.transformer = DeformableTransformer(conv_dim, num_levels=num_levels, encoder=MSDeformAttnEncoder(layers))
        self.position = PositionEmbeddingSine(conv_dim // 2, normalize=True)
        self.mask_features = init_xavier(Conv2d(conv_dim, mask_dim, 1))
        finest = min(stride_of(input_shape, name) for name in self.transformer_in_features)
        self.pyramid_features = by_stride[: int(math.log2(finest) - math.log2(common_stride))]
        self._add_pyramid(input_shape, conv_dim, norm=norm)

    @classmethod
    def from_config(cls, cfg: Any, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Return arguments from MODEL.SEM_SEG_HEAD and MODEL.MASK_FORMER for a backbone of ``input_shape``."""
        head, mask_former = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
        deformable = head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES
        in_features_of(input_shape, deformable, key="DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES")
        return {
            "input_shape": in_features_of(input_shape, head.IN_FEATURES, key="IN_FEATURES"),
            "transformer_in_features": deformable,
            "transformer_enc_layers": head.TRANSFORMER_ENC_LAYERS,
            "transformer_nheads": head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS,
            "transformer_num_points": head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS,
            "transformer_dropout": mask_former.DROPOUT,
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
            "common_stride": head.COMMON_STRIDE,
            "float32_training": cfg.SOLVER.AMP.PIXEL_DECODER_FLOAT32,
        }

    def forward_features(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return mask features (N, mask_dim, H, W), the encoder's lowest map, and the maps of the transformer decoder.

        ``features`` are the backbone's maps (N, C, h, w) by name. The transformer decoder gets three maps, from low to
        high resolution.
        """
        device_type = next(iter(features.values())).device.type
        if not self._leaves_autocast(device_type):
            return self._decode(features)
        with torch.autocast(device_type, enabled=False):
            return self._decode({name: maps.float() for name, maps in features.items()})

    def _leaves_autocast(self, device_type: str) -> bool:
        if self.float32_training == "never" or not (self.training and torch.is_autocast_enabled(device_type)):
            return False
        return self.float32_training == "always" or torch.get_autocast_dtype(device_type) is torch.float16

    def _decode(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        maps = [project(features[name]) for project, name in zip(self.input_proj, self.transformer_in_features)]
        maps = self.transformer(maps, [self.position(features) for features in maps])
        for level, name in reversed(list(enumerate(self.pyramid_features, start=1))):
            summed = self.add_above(getattr(self, f"adapter_{level}"), features[name], maps[-1])
            maps.append(getattr(self, f"layer_{level}")(summed))
        return self.mask_features(maps[-1]), maps[0], maps[:NUM_MAPS]

    def add_above(self, adapter: nn.Module, features: Tensor, above: Tensor) -> Tensor:
        """Return a backbone map through its adapter (N, C, H, W), plus the level above (N, C, h, w) resized to it."""
        lateral = adapter(features)
        return lateral + F.interpolate(above, size=lateral.shape[-2:], mode="bilinear", align_corners=False)

    def _add_pyramid(self, input_shape: dict[str, ShapeSpec], conv_dim: int, *, norm: str) -> None:
        for level, name in enumerate(self.pyramid_features, start=1):
            adapter, output = pyramid_level(channels_of(input_shape, name), conv_dim, norm=norm)
            self.add_module(f"adapter_{level}", adapter)
            self.add_module(f"layer_{level}", output)


def _project_to_tokens(in_channels: int, conv_dim: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, conv_dim, kernel_size=1)
    nn.init.xavier_uniform_(convolution.weight)
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    norm = get_norm("GN", conv_dim)
    assert norm is not None
    return nn.Sequential(convolution, norm)
