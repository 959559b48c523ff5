"""The model: backbones, decoders, criterion and post-processing. Importing it registers the parts that configs name."""

from mask2former.modeling import backbone as backbone
from mask2former.modeling.contrastive import ContrastiveSetCriterion
from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.fast import accelerate, prepare_for_inference
from mask2former.modeling.matcher import HungarianMatcher
from mask2former.modeling.meta_arch import (
    MaskFormer,
    MaskFormerHead,
    OneFormer,
    OneFormerHead,
    PerPixelBaselineHead,
    PerPixelBaselinePlusHead,
    SemanticSegmentor,
    build_model,
)
from mask2former.modeling.pixel_decoder import (
    BasePixelDecoder,
    MSDeformAttnPixelDecoder,
    TransformerEncoderPixelDecoder,
)
from mask2former.modeling.prediction import QueryPrediction
from mask2former.modeling.registry import (
    BACKBONE_REGISTRY,
    CRITERION_REGISTRY,
    LOSS_REGISTRY,
    MATCHER_REGISTRY,
    META_ARCH_REGISTRY,
    POSTPROCESSING_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    TRANSFORMER_DECODER_REGISTRY,
    takes_clips,
)
from mask2former.modeling.transformer_decoder import (
    ContrastiveMultiScaleMaskedTransformerDecoder,
    MultiScaleMaskedTransformerDecoder,
    StandardTransformerDecoder,
)

__all__ = [
    "BACKBONE_REGISTRY",
    "CRITERION_REGISTRY",
    "LOSS_REGISTRY",
    "MATCHER_REGISTRY",
    "META_ARCH_REGISTRY",
    "POSTPROCESSING_REGISTRY",
    "SEM_SEG_HEADS_REGISTRY",
    "TRANSFORMER_DECODER_REGISTRY",
    "BasePixelDecoder",
    "ContrastiveMultiScaleMaskedTransformerDecoder",
    "ContrastiveSetCriterion",
    "HungarianMatcher",
    "MSDeformAttnPixelDecoder",
    "MaskFormer",
    "MaskFormerHead",
    "MultiScaleMaskedTransformerDecoder",
    "OneFormer",
    "OneFormerHead",
    "PerPixelBaselineHead",
    "PerPixelBaselinePlusHead",
    "QueryPrediction",
    "SemanticSegmentor",
    "SetCriterion",
    "StandardTransformerDecoder",
    "TransformerEncoderPixelDecoder",
    "accelerate",
    "build_model",
    "prepare_for_inference",
    "takes_clips",
]
