"""Mask2Former for the library transformers: its config, models and image processor, over the modules of this package.

Importing changes nothing in transformers; ``register`` makes its ``Auto*`` classes choose ours.
"""

import transformers

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


def register() -> None:
    """Make ``AutoConfig``, ``AutoModel``, ``AutoModelForUniversalSegmentation``, ``AutoImageProcessor`` and pipelines
    made of folder names build the classes of this package wherever a config says "mask2former".

    Importing does not do it: the model type is that of transformers, and a program may want both. Classes named
    outright, such as ``transformers.Mask2FormerModel``, stay those of transformers. Calling it again does no harm.
    """
    transformers.AutoConfig.register(Mask2FormerConfig.model_type, Mask2FormerConfig, exist_ok=True)
    transformers.AutoModel.register(Mask2FormerConfig, Mask2FormerModel, exist_ok=True)
    # Pipelines ask for image segmentation first, where theirs is not listed: they find it by name.
    for auto in (transformers.AutoModelForUniversalSegmentation, transformers.AutoModelForImageSegmentation):
        auto.register(Mask2FormerConfig, Mask2FormerForUniversalSegmentation, exist_ok=True)
    transformers.AutoImageProcessor.register(
        Mask2FormerConfig,
        image_processor_classes={"pil": Mask2FormerImageProcessor, "torchvision": Mask2FormerImageProcessor},
        exist_ok=True,
    )
