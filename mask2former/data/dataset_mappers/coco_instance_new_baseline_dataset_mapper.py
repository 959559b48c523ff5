"""``COCOInstanceNewBaselineDatasetMapper`` where the published project has it."""

from mask2former.data.dataset_mappers.published import COCOInstanceNewBaselineDatasetMapper

__all__ = ["COCOInstanceNewBaselineDatasetMapper"]
