"""``MaskFormerInstanceDatasetMapper`` where the published project has it."""

from mask2former.data.dataset_mappers.published import MaskFormerInstanceDatasetMapper

__all__ = ["MaskFormerInstanceDatasetMapper"]
