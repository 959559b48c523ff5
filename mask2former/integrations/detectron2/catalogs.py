"""One set of names for the data sets of both projects."""

from __future__ import annotations

from typing import Any

from detectron2.data import DatasetCatalog as DetectronDatasetCatalog
from detectron2.data import MetadataCatalog as DetectronMetadataCatalog

from mask2former.config.registry import LinkedNames
from mask2former.data import DatasetCatalog, MetadataCatalog, register_builtin_datasets


def link_catalogs() -> None:
    """Let each project find the data sets of the other by name, also those registered later.

    A name that both have means in each what it meant before.
    """
    register_builtin_datasets()
    _forget_empty(DetectronMetadataCatalog)
    for theirs, ours in (
        (DetectronDatasetCatalog, DatasetCatalog),
        (DetectronMetadataCatalog, MetadataCatalog),
    ):
        own = theirs.data
        theirs.data = LinkedNames(own, ours.link(own))


def _forget_empty(theirs: Any) -> None:
    """Metadata that somebody asked for before it was known gives way to ours."""
    for name in [name for name, metadata in theirs.items() if set(metadata.as_dict()) <= {"name"}]:
        if name in MetadataCatalog:
            theirs.pop(name)
