"""Making the ``Auto*`` classes of transformers choose the classes of this package for Mask2Former."""

from __future__ import annotations

import transformers

from mask2former.integrations.transformers.configuration import Mask2FormerConfig
from mask2former.integrations.transformers.image_processing import Mask2FormerImageProcessor
from mask2former.integrations.transformers.modeling import Mask2FormerForUniversalSegmentation, Mask2FormerModel


def register() -> None:
    """From now on `AutoConfig`, `AutoModel`, `AutoModelForUniversalSegmentation`, `AutoImageProcessor` and pipelines
    made of folder names build ours wherever a config says "mask2former".

    Not done by importing: the model type is theirs, and a program may want both. Classes named outright, such as
    `transformers.Mask2FormerModel`, stay theirs. Calling it again does no harm.
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
