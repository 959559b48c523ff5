"""Meta-architectures: whole models, from input dictionaries to losses or results."""

from mask2former.modeling.meta_arch.assembly import build_model
from mask2former.modeling.meta_arch.mask_former import MaskFormer
from mask2former.modeling.meta_arch.mask_former_head import MaskFormerHead
from mask2former.modeling.meta_arch.one_former import OneFormer, OneFormerHead
from mask2former.modeling.meta_arch.per_pixel_head import PerPixelBaselineHead, PerPixelBaselinePlusHead
from mask2former.modeling.meta_arch.semantic_segmentor import SemanticSegmentor

__all__ = [
    "MaskFormer",
    "MaskFormerHead",
    "OneFormer",
    "OneFormerHead",
    "PerPixelBaselineHead",
    "PerPixelBaselinePlusHead",
    "SemanticSegmentor",
    "build_model",
]
