"""Precision of float32 where the hardware offers something faster: TF32 on GPUs, bfloat16 on some CPUs."""

from __future__ import annotations

import torch

from mask2former.errors import ConfigError

_NAMES = ("highest", "high", "medium")


def set_float32_precision(name: str) -> None:
    """Set the precision of float32 matrix products and convolutions in this process; "" keeps torch's default.

    "highest" also makes cuDNN convolve in float32; torch's default for it is TF32.

    Raises:
        ConfigError: an unknown name.
    """
    if not name:
        return
    if name not in _NAMES:
        raise ConfigError(f"FLOAT32_PRECISION: expected {', '.join(_NAMES)} or nothing, found {name!r}")
    torch.set_float32_matmul_precision(name)
    torch.backends.cudnn.allow_tf32 = name != "highest"
