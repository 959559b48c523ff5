"""Meta-architectures: the whole model, from input dictionaries to losses or results."""

from mask2former.modeling.meta_arch.assembly import build_model
from mask2former.modeling.meta_arch.mask_former import MaskFormer
from mask2former.modeling.meta_arch.mask_former_head import MaskFormerHead

__all__ = ["MaskFormer", "MaskFormerHead", "build_model"]
