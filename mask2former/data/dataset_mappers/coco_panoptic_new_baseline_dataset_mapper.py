"""``COCOPanopticNewBaselineDatasetMapper`` where the published project has it."""

from mask2former.data.dataset_mappers.published import COCOPanopticNewBaselineDatasetMapper

__all__ = ["COCOPanopticNewBaselineDatasetMapper"]
