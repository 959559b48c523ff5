"""Universal image and video segmentation with masked-attention mask transformers.

The names below are imported on first use, so that ``import mask2former`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mask2former.config import add_maskformer2_config, get_cfg
    from mask2former.modeling import build_model
    from mask2former.predictor import Predictor

__version__ = "0.1.0"

__all__ = ["Predictor", "__version__", "add_maskformer2_config", "build_model", "get_cfg"]

_MODULE_OF = {
    "Predictor": "mask2former.predictor",
    "add_maskformer2_config": "mask2former.config",
    "build_model": "mask2former.modeling",
    "get_cfg": "mask2former.config",
}


def __getattr__(name: str) -> Any:
    """Import an exported name on first use (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
