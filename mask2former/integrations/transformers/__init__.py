"""Mask2Former and OneFormer for the library transformers: configs, models and processors, over our own modules.

Importing changes nothing in transformers; ``register`` makes its ``Auto*`` classes choose ours.
"""

import transformers

from mask2former.integrations.transformers.configuration import Mask2FormerConfig, OneFormerConfig
from mask2former.integrations.transformers.image_processing import Mask2FormerImageProcessor
from mask2former.integrations.transformers.modeling import (
    Mask2FormerForUniversalSegmentation,
    Mask2FormerForUniversalSegmentationOutput,
    Mask2FormerModel,
    Mask2FormerModelOutput,
    Mask2FormerPreTrainedModel,
)
from mask2former.integrations.transformers.one_former import (
    OneFormerForUniversalSegmentation,
    OneFormerForUniversalSegmentationOutput,
    OneFormerModel,
    OneFormerModelOutput,
    OneFormerPreTrainedModel,
)
from mask2former.integrations.transformers.task_processing import OneFormerImageProcessor, OneFormerProcessor

__all__ = [
    "Mask2FormerConfig",
    "Mask2FormerForUniversalSegmentation",
    "Mask2FormerForUniversalSegmentationOutput",
    "Mask2FormerImageProcessor",
    "Mask2FormerModel",
    "Mask2FormerModelOutput",
    "Mask2FormerPreTrainedModel",
    "OneFormerConfig",
    "OneFormerForUniversalSegmentation",
    "OneFormerForUniversalSegmentationOutput",
    "OneFormerImageProcessor",
    "OneFormerModel",
    "OneFormerModelOutput",
    "OneFormerPreTrainedModel",
    "OneFormerProcessor",
    "register",
]


def register() -> None:
    """Make ``AutoConfig``, ``AutoModel``, ``AutoModelForUniversalSegmentation``, ``AutoImageProcessor`` and pipelines
    made of folder names build the classes of this package wherever a config says "mask2former" or "oneformer".

    Importing does not do it: the model types are those of transformers, and a program may want both. Classes named
    outright, such as ``transformers.Mask2FormerModel``, stay those of transformers. Calling it again does no harm.
    """
    for config, model, with_heads, processor in (
        (Mask2FormerConfig, Mask2FormerModel, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor),
        (OneFormerConfig, OneFormerModel, OneFormerForUniversalSegmentation, OneFormerImageProcessor),
    ):
        transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
        transformers.AutoModel.register(config, model, exist_ok=True)
        # Pipelines ask for image segmentation first, where theirs is not listed: they find it by name.
        for auto in (transformers.AutoModelForUniversalSegmentation, transformers.AutoModelForImageSegmentation):
            auto.register(config, with_heads, exist_ok=True)
        transformers.AutoImageProcessor.register(
            config, image_processor_classes={"pil": processor, "torchvision": processor}, exist_ok=True
        )
