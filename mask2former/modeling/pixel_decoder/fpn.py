"""The pixel decoders of MaskFormer: a feature pyramid (Lin et al. 2017), alone or under a transformer encoder.

Choice of backbone features and the two convolutions of a pyramid level are common to all pixel decoders.

Letters: N images (batch times frames), C channels, H W size, S tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.errors import ConfigError
from mask2former.modeling.layers import (
    Conv2d,
    PositionEmbeddingSine,
    TransformerEncoder,
    TransformerOptions,
    get_norm,
    init_xavier,
)
from mask2former.modeling.registry import SEM_SEG_HEADS_REGISTRY
from mask2former.structures import ShapeSpec

NUM_MAPS = 3  # maps for the transformer decoder, from low to high resolution


def in_features_of(input_shape: dict[str, ShapeSpec], names: Sequence[str], *, key: str) -> dict[str, ShapeSpec]:
    """Return the backbone features that ``MODEL.SEM_SEG_HEAD.<key>`` names.

    Raises:
        ConfigError: the backbone has no feature of a name.
    """
    missing = sorted(set(names) - set(input_shape))
    if missing or not names:
        raise ConfigError(
            f"MODEL.SEM_SEG_HEAD.{key}: expected features of the backbone ({', '.join(input_shape)}), "
            f"found {', '.join(missing) or 'none'}"
        )
    return {name: input_shape[name] for name in names}


def stride_of(input_shape: dict[str, ShapeSpec], name: str) -> int:
    """Return the stride of a feature."""
    stride = input_shape[name].stride
    assert stride is not None, f"feature {name} has no stride"
    return stride


def channels_of(input_shape: dict[str, ShapeSpec], name: str) -> int:
    """Return the number of channels of a feature."""
    channels = input_shape[name].channels
    assert channels is not None, f"feature {name} has no channels"
    return channels


def map_to_tokens(features: Tensor) -> Tensor:
    """Return a map (N, C, H, W) as tokens (N, S, C)."""
    return features.flatten(2).transpose(1, 2)  # (N, C, H, W) -> (N, HW, C)


def pyramid_level(in_channels: int, conv_dim: int, *, norm: str) -> tuple[Conv2d, Conv2d]:
    """Return the 1x1 convolution of a backbone map, and the 3x3 convolution of its sum with the level above."""
    adapter = Conv2d(in_channels, conv_dim, 1, bias=not norm, norm=get_norm(norm, conv_dim))
    return init_xavier(adapter), output_convolution(conv_dim, conv_dim, norm=norm)


def output_convolution(in_channels: int, conv_dim: int, *, norm: str) -> Conv2d:
    """Return a 3x3 convolution with norm and ReLU."""
    convolution = Conv2d(
        in_channels, conv_dim, 3, padding=1, bias=not norm, norm=get_norm(norm, conv_dim), activation=F.relu
    )
    return init_xavier(convolution)


@SEM_SEG_HEADS_REGISTRY.register()
class BasePixelDecoder(nn.Module):
    """A feature pyramid, from the coarsest backbone map down to the finest, which gives the mask features."""

    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        conv_dim: int = 256,
        mask_dim: int = 256,
        norm: str = "GN",
        top_channels: int | None = None,
    ) -> None:
        """``input_shape`` holds channels and stride of each backbone map; an encoded top has ``top_channels``."""
        super().__init__()
        self.in_features = sorted(input_shape, key=lambda name: stride_of(input_shape, name))
        for level, name in enumerate(self.in_features[:-1], start=1):
            adapter, output = pyramid_level(channels_of(input_shape, name), conv_dim, norm=norm)
            self.add_module(f"adapter_{level}", adapter)
            self.add_module(f"layer_{level}", output)
        if top_channels is None:
            top_channels = channels_of(input_shape, self.in_features[-1])
        self.add_module(f"layer_{len(self.in_features)}", output_convolution(top_channels, conv_dim, norm=norm))
        self.mask_features = init_xavier(Conv2d(conv_dim, mask_dim, 3, padding=1))

    @classmethod
    def from_config(cls, cfg: Any, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Return arguments from MODEL.SEM_SEG_HEAD for a backbone of ``input_shape``."""
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": in_features_of(input_shape, head.IN_FEATURES, key="IN_FEATURES"),
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
        }

    def forward_features(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Return mask features (N, mask_dim, H, W), the encoded top or None, and three maps, coarse first.

        ``features`` are the backbone's maps (N, C, h, w) by name.
        """
        top, encoded = self.encode_top(features[self.in_features[-1]])
        maps = [getattr(self, f"layer_{len(self.in_features)}")(top)]
        for level in range(len(self.in_features) - 1, 0, -1):
            lateral = getattr(self, f"adapter_{level}")(features[self.in_features[level - 1]])
            above = F.interpolate(maps[-1], size=lateral.shape[-2:], mode="nearest")
            maps.append(getattr(self, f"layer_{level}")(lateral + above))
        return self.mask_features(maps[-1]), encoded, maps[:NUM_MAPS]

    def encode_top(self, top: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the input of the pyramid, and the encoder's map or None."""
        return top, None


@SEM_SEG_HEADS_REGISTRY.register()
class TransformerEncoderPixelDecoder(BasePixelDecoder):
    """A feature pyramid whose coarsest map first passes a transformer encoder."""

    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        conv_dim: int = 256,
        mask_dim: int = 256,
        norm: str = "GN",
        transformer_enc_layers: int,
        transformer_nheads: int,
        transformer_dim_feedforward: int,
        transformer_dropout: float = 0.0,
        transformer_pre_norm: bool = False,
    ) -> None:
        super().__init__(input_shape, conv_dim=conv_dim, mask_dim=mask_dim, norm=norm, top_channels=conv_dim)
        top_channels = channels_of(input_shape, self.in_features[-1])
        self.input_proj = init_xavier(nn.Conv2d(top_channels, conv_dim, kernel_size=1))
        self.position = PositionEmbeddingSine(conv_dim // 2, normalize=True)
        options = TransformerOptions(
            transformer_nheads,
            transformer_dim_feedforward,
            dropout=transformer_dropout,
            pre_norm=transformer_pre_norm,
        )
        encoder = TransformerEncoder(conv_dim, options, num_layers=transformer_enc_layers)
        self.transformer = nn.ModuleDict({"encoder": encoder})

    @classmethod
    def from_config(cls, cfg: Any, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Return arguments from MODEL.SEM_SEG_HEAD and MODEL.MASK_FORMER for a backbone of ``input_shape``."""
        mask_former = cfg.MODEL.MASK_FORMER
        return {
            **super().from_config(cfg, input_shape),
            "transformer_enc_layers": cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS,
            "transformer_nheads": mask_former.NHEADS,
            "transformer_dim_feedforward": mask_former.DIM_FEEDFORWARD,
            "transformer_dropout": mask_former.DROPOUT,
            "transformer_pre_norm": mask_former.PRE_NORM,
        }

    def encode_top(self, top: Tensor) -> tuple[Tensor, Tensor]:
        """Return the encoder's map (N, conv_dim, h, w) of the top map (N, C, h, w), twice."""
        projected = self.input_proj(top)
        tokens = self.transformer["encoder"](map_to_tokens(projected), map_to_tokens(self.position(projected)))
        encoded = tokens.transpose(1, 2).unflatten(-1, projected.shape[-2:])  # (N, S, C) -> (N, C, h, w)
        return encoded, encoded
