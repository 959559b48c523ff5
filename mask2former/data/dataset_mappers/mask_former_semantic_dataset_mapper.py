"""``MaskFormerSemanticDatasetMapper`` where the published project has it."""

from mask2former.data.dataset_mappers.published import MaskFormerSemanticDatasetMapper

__all__ = ["MaskFormerSemanticDatasetMapper"]
