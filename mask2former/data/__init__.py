"""From files to batches: catalogs, transforms, the mapper, samplers and loaders."""

from mask2former.data.catalog import DatasetCatalog, MetadataCatalog, dataset_root

__all__ = ["DatasetCatalog", "MetadataCatalog", "dataset_root"]
