"""Universal image and video segmentation with masked-attention mask transformers.

Everything is imported on first use, so that ``import mask2former`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from mask2former.config import CfgNode, add_maskformer2_config, get_cfg
    from mask2former.data.dataset_mappers.published import (
        COCOInstanceNewBaselineDatasetMapper,
        COCOPanopticNewBaselineDatasetMapper,
        MaskFormerInstanceDatasetMapper,
        MaskFormerPanopticDatasetMapper,
        MaskFormerSemanticDatasetMapper,
    )
    from mask2former.evaluation.instance_evaluation import InstanceSegEvaluator
    from mask2former.inference.pipeline import pipeline
    from mask2former.inference.predictor import Predictor
    from mask2former.inference.test_time_augmentation import SemanticSegmentorWithTTA
    from mask2former.modeling import MaskFormer, prepare_for_inference

__version__ = "0.2.0"

__all__ = [
    "COCOInstanceNewBaselineDatasetMapper",
    "COCOPanopticNewBaselineDatasetMapper",
    "InstanceSegEvaluator",
    "MaskFormer",
    "MaskFormerInstanceDatasetMapper",
    "MaskFormerPanopticDatasetMapper",
    "MaskFormerSemanticDatasetMapper",
    "Predictor",
    "SemanticSegmentorWithTTA",
    "__version__",
    "add_maskformer2_config",
    "build_model",
    "get_cfg",
    "pipeline",
    "prepare_for_inference",
]

_MAPPERS = "mask2former.data.dataset_mappers.published"

_MODULE_OF = {
    "COCOInstanceNewBaselineDatasetMapper": _MAPPERS,
    "COCOPanopticNewBaselineDatasetMapper": _MAPPERS,
    "InstanceSegEvaluator": "mask2former.evaluation.instance_evaluation",
    "MaskFormer": "mask2former.modeling",
    "MaskFormerInstanceDatasetMapper": _MAPPERS,
    "MaskFormerPanopticDatasetMapper": _MAPPERS,
    "MaskFormerSemanticDatasetMapper": _MAPPERS,
    "Predictor": "mask2former.inference.predictor",
    "SemanticSegmentorWithTTA": "mask2former.inference.test_time_augmentation",
    "add_maskformer2_config": "mask2former.config",
    "get_cfg": "mask2former.config",
    "pipeline": "mask2former.inference.pipeline",
    "prepare_for_inference": "mask2former.modeling",
}


def build_model(cfg: CfgNode) -> nn.Module:
    """The model that ``cfg`` describes, on ``cfg.MODEL.DEVICE``, knowing the classes of its data sets.

    Raises:
        ConfigError: a key names a part that does not exist, or values do not fit together.
    """
    from mask2former.data.datasets import register_builtin_datasets
    from mask2former.data.own_data import register_own_data
    from mask2former.modeling import build_model as assemble

    register_builtin_datasets()  # whose metadata says which classes are things
    register_own_data(cfg)
    return assemble(cfg)


def __getattr__(name: str) -> Any:
    """Import an exported name on first use (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
