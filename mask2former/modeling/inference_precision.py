"""MODEL.PRECISION: the dtype of inference.

Autocast chooses by operator. Always float32: locations and weights of deformable attention, every softmax, statistics
of norms, matching, losses and everything after the logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from mask2former.errors import ConfigError

_DTYPES: Mapping[str, torch.dtype | None] = MappingProxyType(
    {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
)
PRECISIONS = tuple(_DTYPES)


def parse_precision(name: str, device: torch.device | None = None) -> torch.dtype | None:
    """Return the dtype that MODEL.PRECISION names; None is float32 throughout.

    Raises:
        ConfigError: an unknown name, or float16 on a ``device`` without kernels for it.
    """
    if name not in _DTYPES:
        raise ConfigError(f"MODEL.PRECISION: expected one of {', '.join(PRECISIONS)}; found {name!r}")
    if name == "float16" and device is not None and device.type != "cuda":
        raise ConfigError(f"MODEL.PRECISION: float16 is for CUDA, expected float32 or bfloat16 on a {device.type}")
    return _DTYPES[name]
