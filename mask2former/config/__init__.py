"""Configuration: every key with its default, inheritance between files, and safe reading."""

from mask2former.config.cfg_node import CfgNode
from mask2former.config.defaults import add_maskformer2_config, add_maskformer2_video_config, get_cfg

__all__ = ["CfgNode", "add_maskformer2_config", "add_maskformer2_video_config", "get_cfg"]
