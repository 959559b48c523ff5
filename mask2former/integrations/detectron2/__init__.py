"""The models of this package inside detectron2: in its registries, with its structures, on its data sets.

Importing it registers, and so does ``add_maskformer2_config`` with a config of detectron2. Data sets registered in
either project are found by name in the other from then on.
"""

from mask2former.integrations.detectron2.augmentations import DetectronAugmentation
from mask2former.integrations.detectron2.backbones import D2SwinTransformer
from mask2former.integrations.detectron2.catalogs import link_catalogs
from mask2former.integrations.detectron2.heads import (
    BasePixelDecoder,
    MaskFormerHead,
    MSDeformAttnPixelDecoder,
    PerPixelBaselineHead,
    PerPixelBaselinePlusHead,
    TransformerEncoderPixelDecoder,
)
from mask2former.integrations.detectron2.mapper import DatasetMapper
from mask2former.integrations.detectron2.meta_arch import MaskFormer, VideoMaskFormer
from mask2former.integrations.detectron2.optimizer import build_optimizer
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
