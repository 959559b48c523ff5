"""Default configuration, read from ``defaults.yaml`` beside this file."""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any

import yaml

from mask2former.config.cfg_node import CfgNode
from mask2former.config.integration import DETECTRON2, comes_from, load_integration

_FOUNDATION, _MASKFORMER2, _VIDEO, _RUNTIME = range(4)


@functools.cache
def _default_documents() -> tuple[dict[str, Any], ...]:
    text = resources.files(__package__).joinpath("defaults.yaml").read_text(encoding="utf-8")
    return tuple(yaml.safe_load_all(text))


def get_cfg() -> CfgNode:
    """A configuration with every key at its default: detectron2's, Mask2Former's, video's and the runtime's."""
    cfg = CfgNode()
    for document in range(len(_default_documents())):
        _add_missing_keys(cfg, _default_documents()[document])
    return cfg


def add_maskformer2_config(cfg: Any) -> None:
    """Add the keys of Mask2Former to ``cfg`` (ours or detectron2's), leaving those it has as they are.

    With a configuration of detectron2 the model and its parts also get into the registries of that project.
    """
    if comes_from(cfg, DETECTRON2):
        load_integration(DETECTRON2)
    _add_missing_keys(cfg, _default_documents()[_MASKFORMER2])
    _add_missing_keys(cfg, _default_documents()[_RUNTIME])


def add_maskformer2_video_config(cfg: Any) -> None:
    """Add the keys of video instance segmentation to ``cfg``, leaving those it has as they are."""
    _add_missing_keys(cfg, _default_documents()[_VIDEO])


def _add_missing_keys(cfg: Any, tree: dict[str, Any]) -> None:
    # The nodes made are of cfg's own class, so that a CfgNode of detectron2 stays one throughout.
    for key, value in tree.items():
        if not isinstance(value, dict):
            cfg.setdefault(key, list(value) if isinstance(value, list) else value)
            continue
        if key not in cfg:
            cfg[key] = type(cfg)()
        _add_missing_keys(cfg[key], value)
