"""Checkpoints: reading never executes code, writing never leaves half a file, loading says what matched."""

from mask2former.checkpoint.loading import LoadReport, load_state_dict, load_weights
from mask2former.checkpoint.reader import load_state
from mask2former.checkpoint.writer import save_atomic, write_text_atomic

__all__ = ["LoadReport", "load_state", "load_state_dict", "load_weights", "save_atomic", "write_text_atomic"]
