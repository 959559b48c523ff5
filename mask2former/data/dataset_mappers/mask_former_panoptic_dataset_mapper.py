"""``MaskFormerPanopticDatasetMapper`` where the published project has it."""

from mask2former.data.dataset_mappers.published import MaskFormerPanopticDatasetMapper

__all__ = ["MaskFormerPanopticDatasetMapper"]
