"""Configuration: every key with its default, inheritance, safe reading, and registries of what it names."""

from mask2former.config.cfg_node import (
    CfgNode,
    add_maskformer2_config,
    add_maskformer2_video_config,
    add_oneformer_config,
    as_mask_former,
    get_cfg,
    inference_node,
    is_oneformer,
    own_names,
    query_node,
)
from mask2former.config.keys import Key, register_keys
from mask2former.config.registry import Registry, build_from_config
from mask2former.config.yaml_reader import configs_folder, locate_config

__all__ = [
    "CfgNode",
    "Key",
    "Registry",
    "add_maskformer2_config",
    "add_maskformer2_video_config",
    "add_oneformer_config",
    "as_mask_former",
    "build_from_config",
    "configs_folder",
    "get_cfg",
    "inference_node",
    "is_oneformer",
    "locate_config",
    "own_names",
    "query_node",
    "register_keys",
]
