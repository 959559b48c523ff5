"""Backbones: images in, named feature maps out."""

from mask2former.modeling.backbone.backbone import Backbone, build_backbone
from mask2former.modeling.backbone.resnet import ResNet, build_resnet_backbone, build_resnet_deeplab_backbone

__all__ = ["Backbone", "ResNet", "build_backbone", "build_resnet_backbone", "build_resnet_deeplab_backbone"]
