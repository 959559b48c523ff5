"""Common parts of pixel decoders: choice of backbone features, and the two convolutions of a pyramid level.

Letters: N images (batch times frames), C channels, H W size, S tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from mask2former.errors import ConfigError
from mask2former.modeling.layers import Conv2d, get_norm, init_xavier
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
