from mask2former.data import MAPPER_REGISTRY, DatasetMapper
from mask2former.data.transforms import (
    AUGMENTATION_REGISTRY,
    Augmentation,
    AugmentationList,
    NoOpTransform,
    ResizeShortestEdge,
    VFlipTransform,
)


class UpsideDown(Augmentation):
    """Turns an image upside down, with its masks."""

    def __init__(self, probability):
        self.probability = probability

    def sample(self, rng, size, sem_seg=None):  # all randomness comes from rng; size is (height, width)
        return VFlipTransform(size[0]) if rng.random() < self.probability else NoOpTransform()


@AUGMENTATION_REGISTRY.register(name="upside_down")  # for INPUT.AUGMENTATIONS, whatever the mapper
def build_upside_down(cfg):
    return UpsideDown(0.5)


@MAPPER_REGISTRY.register()
class PlainMapper(DatasetMapper):
    """Images are resized and turned, and nothing else."""

    target = "instance"  # what is trained: instance, panoptic or semantic

    @classmethod
    def build_augmentations(cls, cfg, preset, *, ignore_label):
        return AugmentationList([ResizeShortestEdge(cfg.INPUT.IMAGE_SIZE), build_upside_down(cfg)])
