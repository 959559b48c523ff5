"""The models of this package inside detectron2: in its registries, with its structures, on its data sets.

Importing it registers, and so does ``add_maskformer2_config`` with a config of detectron2. Data sets registered in
either project are found by name in the other from then on.
"""

from mask2former.integrations.detectron2.data import DatasetMapper, DetectronAugmentation, link_catalogs
from mask2former.integrations.detectron2.models import (
    BasePixelDecoder,
    D2SwinTransformer,
    MaskFormer,
    MaskFormerHead,
    MSDeformAttnPixelDecoder,
    PerPixelBaselineHead,
    PerPixelBaselinePlusHead,
    TransformerEncoderPixelDecoder,
    VideoMaskFormer,
    build_optimizer,
)
from mask2former.integrations.detectron2.structures import instances_from_detectron2, instances_to_detectron2
from mask2former.modeling import TRANSFORMER_DECODER_REGISTRY

__all__ = [
    "TRANSFORMER_DECODER_REGISTRY",
    "BasePixelDecoder",
    "D2SwinTransformer",
    "DatasetMapper",
    "DetectronAugmentation",
    "MSDeformAttnPixelDecoder",
    "MaskFormer",
    "MaskFormerHead",
    "PerPixelBaselineHead",
    "PerPixelBaselinePlusHead",
    "TransformerEncoderPixelDecoder",
    "VideoMaskFormer",
    "build_optimizer",
    "instances_from_detectron2",
    "instances_to_detectron2",
]

link_catalogs()
