"""Checkpoints: read without executing code, and loaded with a report of what matched."""

from mask2former.checkpoint.addresses import ZooModel, find_zoo_model, resolve_address, zoo_models
from mask2former.checkpoint.loading import LoadReport, load_state_dict, load_weights
from mask2former.checkpoint.reader import load_state

__all__ = [
    "LoadReport",
    "ZooModel",
    "find_zoo_model",
    "load_state",
    "load_state_dict",
    "load_weights",
    "resolve_address",
    "zoo_models",
]
