"""Export: a model as one file from pixels to results for other runtimes, and the proof that it agrees."""

from mask2former.export.exporting import ExportOptions, export_model

__all__ = ["ExportOptions", "export_model"]
