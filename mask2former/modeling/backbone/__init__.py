"""Backbones: from images to named feature maps."""

from mask2former.modeling.backbone.backbone import Backbone, build_backbone
from mask2former.modeling.backbone.convnext import D2ConvNeXt
from mask2former.modeling.backbone.dinat import D2DiNAT
from mask2former.modeling.backbone.resnet import ResNet, build_resnet_backbone, build_resnet_deeplab_backbone
from mask2former.modeling.backbone.swin import D2SwinTransformer
from mask2former.modeling.backbone.timm import TimmBackbone, TimmPlainTransformer, build_timm_backbone

__all__ = [
    "Backbone",
    "D2ConvNeXt",
    "D2DiNAT",
    "D2SwinTransformer",
    "ResNet",
    "TimmBackbone",
    "TimmPlainTransformer",
    "build_backbone",
    "build_resnet_backbone",
    "build_resnet_deeplab_backbone",
    "build_timm_backbone",
]
