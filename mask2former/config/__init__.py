"""Configuration: every key with its default, inheritance, safe reading, and registries of what it names."""

from mask2former.config.cfg_node import CfgNode, add_maskformer2_config, add_maskformer2_video_config, get_cfg
from mask2former.config.keys import Key, register_keys
from mask2former.config.registry import Registry, build_from_config
from mask2former.config.yaml_reader import configs_folder, locate_config

__all__ = [
    "CfgNode",
    "Key",
    "Registry",
    "add_maskformer2_config",
    "add_maskformer2_video_config",
    "build_from_config",
    "configs_folder",
    "get_cfg",
    "locate_config",
    "register_keys",
]
