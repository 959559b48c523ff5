"""Checkpoints: reading never executes code, writing never leaves half a file, loading says what matched."""

from mask2former.checkpoint.addresses import ZooModel, find_zoo_model, resolve_address, zoo_models
from mask2former.checkpoint.loading import LoadReport, load_state_dict, load_weights
from mask2former.checkpoint.reader import load_state
from mask2former.checkpoint.writer import save_atomic, write_text_atomic

__all__ = [
    "LoadReport",
    "ZooModel",
    "find_zoo_model",
    "load_state",
    "load_state_dict",
    "load_weights",
    "resolve_address",
    "save_atomic",
    "write_text_atomic",
    "zoo_models",
]
