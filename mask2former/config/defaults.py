"""The default configuration, built from the tables of keys beside this file."""

from __future__ import annotations

import copy
from typing import Any

from mask2former.config.cfg_node import CfgNode
from mask2former.config.integration import DETECTRON2, comes_from, load_integration
from mask2former.config.keys import accepted_document, default_documents, registered_keys

_FOUNDATION, _MASKFORMER2, _VIDEO, _RUNTIME = range(4)


def get_cfg() -> CfgNode:
    """Return a config with every key at its default, including those that ``register_keys`` added.

    The keys are detectron2's, Mask2Former's, those for video, and those of this package.
    """
    cfg = CfgNode()
    for document in (*default_documents(), accepted_document()):
        _add_missing_keys(cfg, document)
    for key, entry in registered_keys().items():
        tree: Any = entry.default
        for part in reversed(key.split(".")):
            tree = {part: tree}
        _add_missing_keys(cfg, tree)
    return cfg


def add_maskformer2_config(cfg: Any) -> None:
    """Add the keys of Mask2Former to ``cfg`` (ours or detectron2's) without changing existing ones.

    For a config of detectron2 the model and its parts are also registered in that project.
    """
    if comes_from(cfg, DETECTRON2):
        load_integration(DETECTRON2)
    _add_missing_keys(cfg, default_documents()[_MASKFORMER2])
    _add_missing_keys(cfg, default_documents()[_RUNTIME])


def add_maskformer2_video_config(cfg: Any) -> None:
    """Add the keys of video instance segmentation to ``cfg`` without changing existing ones."""
    _add_missing_keys(cfg, default_documents()[_VIDEO])


def _add_missing_keys(cfg: Any, tree: dict[str, Any]) -> None:
    # The nodes made are of cfg's own class, so that a CfgNode of detectron2 stays one throughout.
    for key, value in tree.items():
        if not isinstance(value, dict):
            cfg.setdefault(key, copy.deepcopy(value))
            continue
        if key not in cfg:
            cfg[key] = type(cfg)()
        _add_missing_keys(cfg[key], value)
