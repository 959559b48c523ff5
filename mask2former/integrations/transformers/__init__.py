"""Mask2Former for the library transformers: its config, models and image processor, over the modules of this package.

Importing changes nothing in transformers; ``register`` makes its ``Auto*`` classes choose ours.
"""

from mask2former.integrations.transformers.auto import register
from mask2former.integrations.transformers.configuration import Mask2FormerConfig
from mask2former.integrations.transformers.image_processing import Mask2FormerImageProcessor
from mask2former.integrations.transformers.modeling import (
    Mask2FormerForUniversalSegmentation,
    Mask2FormerForUniversalSegmentationOutput,
    Mask2FormerModel,
    Mask2FormerModelOutput,
    Mask2FormerPreTrainedModel,
)

__all__ = [
    "Mask2FormerConfig",
    "Mask2FormerForUniversalSegmentation",
    "Mask2FormerForUniversalSegmentationOutput",
    "Mask2FormerImageProcessor",
    "Mask2FormerModel",
    "Mask2FormerModelOutput",
    "Mask2FormerPreTrainedModel",
    "register",
]
