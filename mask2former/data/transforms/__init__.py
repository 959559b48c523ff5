"""Augmentations sample once; the transform they return is applied to image, segmentation, boxes and polygons alike."""

from mask2former.data.transforms.augmentation import (
    AUGMENTATION_REGISTRY,
    Augmentation,
    AugmentationList,
    ImageAugmentation,
)
from mask2former.data.transforms.blend import (
    BLENDS,
    BlendTransform,
    RandomBlend,
    RandomBrightness,
    RandomContrast,
    RandomSaturation,
)
from mask2former.data.transforms.clip import ByClip, ByFrame, ClipAugmentation, ClipAugmentationList, PanningCrop
from mask2former.data.transforms.color import ColorAugSSD, SSDColorTransform
from mask2former.data.transforms.crop import (
    FixedSizeCrop,
    RandomCrop,
    RandomCrop_CategoryAreaConstraint,
    RandomCropCategoryAreaConstraint,
)
from mask2former.data.transforms.geometry import (
    CropTransform,
    HFlipTransform,
    PadTransform,
    ResizeTransform,
    RotationTransform,
    VFlipTransform,
)
from mask2former.data.transforms.resize import Resize, ResizeScale, ResizeShortestEdge
from mask2former.data.transforms.spatial import PadToDivisible, RandomFlip, RandomRotation
from mask2former.data.transforms.transform import NoOpTransform, Transform, TransformList

__all__ = [
    "AUGMENTATION_REGISTRY",
    "BLENDS",
    "Augmentation",
    "AugmentationList",
    "BlendTransform",
    "ByClip",
    "ByFrame",
    "ClipAugmentation",
    "ClipAugmentationList",
    "ColorAugSSD",
    "CropTransform",
    "FixedSizeCrop",
    "HFlipTransform",
    "ImageAugmentation",
    "NoOpTransform",
    "PadToDivisible",
    "PadTransform",
    "PanningCrop",
    "RandomBlend",
    "RandomBrightness",
    "RandomContrast",
    "RandomCrop",
    "RandomCropCategoryAreaConstraint",
    "RandomCrop_CategoryAreaConstraint",
    "RandomFlip",
    "RandomRotation",
    "RandomSaturation",
    "Resize",
    "ResizeScale",
    "ResizeShortestEdge",
    "ResizeTransform",
    "RotationTransform",
    "SSDColorTransform",
    "Transform",
    "TransformList",
    "VFlipTransform",
]
