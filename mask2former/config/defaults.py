"""Default configuration, read from ``defaults.yaml`` beside this file."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from importlib import resources
from typing import Any

import yaml

from mask2former.config.cfg_node import CfgNode
from mask2former.config.integration import DETECTRON2, comes_from, load_integration
from mask2former.errors import ConfigError

_FOUNDATION, _MASKFORMER2, _VIDEO, _RUNTIME = range(4)
_registered = CfgNode()  # keys of modules outside


@functools.cache
def _default_documents() -> tuple[dict[str, Any], ...]:
    text = resources.files(__package__).joinpath("defaults.yaml").read_text(encoding="utf-8")
    return tuple(yaml.safe_load_all(text))


def get_cfg() -> CfgNode:
    """A configuration with every key at its default: detectron2's, Mask2Former's, video's and the runtime's.

    Those of `register_keys` come last.
    """
    cfg = CfgNode()
    for document in (*_default_documents(), dict(_registered)):
        _add_missing_keys(cfg, document)
    return cfg


def register_keys(defaults: Mapping[str, Any]) -> None:
    """Adds keys with their defaults, nested as in a file, to every configuration that `get_cfg` makes from now on.

    Example: `register_keys({"MODEL": {"MY_BACKBONE": {"DEPTH": 18}}})`, in a module that `--import` names.

    Raises:
        ConfigError: a key exists already with another default.
    """
    added = CfgNode()
    _add_missing_keys(added, dict(defaults))
    _refuse_known_keys(get_cfg(), added, prefix="")
    _add_missing_keys(_registered, added)


def _refuse_known_keys(known: CfgNode, added: CfgNode, *, prefix: str) -> None:
    for name, value in added.items():
        if name not in known:
            continue
        if isinstance(value, CfgNode) and isinstance(known[name], CfgNode):
            _refuse_known_keys(known[name], value, prefix=f"{prefix}{name}.")
        elif value != known[name]:
            raise ConfigError(f"register_keys: {prefix}{name} exists already, with the default {known[name]!r}")


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
            cfg.setdefault(key, copy.deepcopy(value))
            continue
        if key not in cfg:
            cfg[key] = type(cfg)()
        _add_missing_keys(cfg[key], value)
