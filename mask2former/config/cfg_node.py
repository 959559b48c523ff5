"""``CfgNode``: fvcore's configuration tree, read safely and with errors that name file, key and nearest keys.

``get_cfg`` builds the default configuration from the tables of keys beside this file.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any

from fvcore.common.config import CfgNode as FvcoreCfgNode

from mask2former.config.keys import accepted_document, default_documents, registered_keys
from mask2former.config.merging import merge_trees, nest
from mask2former.config.registry import DETECTRON2, comes_from, load_integration
from mask2former.config.yaml_reader import iter_config_files, locate_config
from mask2former.errors import ConfigError


class CfgNode(FvcoreCfgNode):
    """A tree of configuration keys; ``cfg.MODEL.DEVICE`` reads and, until ``freeze()``, writes.

    Merging raises one ``ConfigError`` with all faults, and then changes nothing. A value without effect gets a warning.
    """

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """Return the content of a config file merged over the files it names as ``_BASE_``, relative to itself.

        ``filename`` is a path, or a name below the published configs: coco/panoptic-segmentation/….yaml. Nothing is
        ever executed: ``allow_unsafe`` is accepted because fvcore has it, and ignored.

        Raises:
            ConfigError: a file is missing, not YAML, not a mapping, or inherits from itself.
        """
        tree: dict[str, Any] = {}
        for _, content in iter_config_files(locate_config(filename)):
            _overlay(tree, content)
        return tree

    def merge_from_file(self, cfg_filename: str | os.PathLike[str], allow_unsafe: bool = False) -> None:
        """Overwrite keys by those of a config file, found as by ``load_yaml_with_base``, and of its bases.

        Raises:
            ConfigError: as ``load_yaml_with_base``, or keys are unknown or values of another type.
        """
        merge_trees(self, list(iter_config_files(locate_config(cfg_filename))))

    def merge_from_list(self, cfg_list: Sequence[Any]) -> None:
        """Overwrite keys by ``[KEY, VALUE, KEY, VALUE, ...]``; values given as text are read as Python literals.

        Raises:
            ConfigError: keys are unknown, or without value, or values of another type.
        """
        if len(cfg_list) % 2:
            raise ConfigError(f"options come as KEY VALUE pairs, but {cfg_list[-1]!r} has no value")
        tree: dict[str, Any] = {}
        for key, value in zip(cfg_list[::2], cfg_list[1::2], strict=True):
            _overlay(tree, nest(str(key), value))
        merge_trees(self, [("command line", tree)])

    def merge_from_dict(self, values: Mapping[str, Any]) -> None:
        """Overwrite keys by those of a dictionary, nested or with full names: ``{"SOLVER.BASE_LR": 1e-4}``.

        Raises:
            ConfigError: keys are unknown or values of another type.
        """
        tree: dict[str, Any] = {}
        for key, value in values.items():
            _overlay(tree, nest(str(key), value))
        merge_trees(self, [("merge_from_dict", tree)])

    def merge_from_other_cfg(self, cfg_other: Mapping[str, Any]) -> None:
        """Overwrite keys by those of another configuration.

        Raises:
            ConfigError: keys are unknown or values of another type.
        """
        merge_trees(self, [("another configuration", cfg_other)])

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Return the config as YAML, without keys that nothing reads and that have their defaults."""
        shown = self.clone()
        shown.defrost()
        _drop_idle(shown, accepted_document())
        return super(CfgNode, shown).dump(*args, **kwargs)  # type: ignore[no-any-return]


def _overlay(tree: dict[str, Any], content: Mapping[str, Any]) -> None:
    for key, value in content.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _overlay(tree[key], value)
        else:
            tree[key] = copy.deepcopy(value)  # what was handed in is not to change


def _drop_idle(node: CfgNode, accepted: Mapping[str, Any]) -> None:
    for key, default in accepted.items():
        if isinstance(default, dict) and isinstance(node.get(key), CfgNode):
            _drop_idle(node[key], default)
            if not node[key]:
                del node[key]
        elif key in node and node[key] == default:
            del node[key]


_FOUNDATION, _MASKFORMER2, _VIDEO, _ONEFORMER, _RUNTIME = range(5)


def get_cfg() -> CfgNode:
    """Return a config with every key at its default, including those that ``register_keys`` added.

    The keys are detectron2's, Mask2Former's, those for video, OneFormer's, and those of this package.
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


def add_oneformer_config(cfg: Any) -> None:
    """Add the keys of OneFormer, of its tasks and of its backbones to ``cfg`` without changing existing ones."""
    _add_missing_keys(cfg, default_documents()[_ONEFORMER])


def is_oneformer(cfg: Any) -> bool:
    """Return whether MODEL.META_ARCHITECTURE is OneFormer, or a model of yours whose name holds that word."""
    return "OneFormer" in cfg.MODEL.META_ARCHITECTURE


def inference_node(cfg: Any) -> Any:
    """Return the node of SEMANTIC_ON, …: MODEL.TEST of OneFormer, else MODEL.MASK_FORMER.TEST."""
    return cfg.MODEL.TEST if is_oneformer(cfg) else cfg.MODEL.MASK_FORMER.TEST


def query_node(cfg: Any) -> Any:
    """Return the node of NUM_OBJECT_QUERIES, DEC_LAYERS, …: MODEL.ONE_FORMER of OneFormer, else MODEL.MASK_FORMER."""
    return cfg.MODEL.ONE_FORMER if is_oneformer(cfg) else cfg.MODEL.MASK_FORMER


def as_mask_former(cfg: Any) -> Any:
    """Return a config whose MODEL.MASK_FORMER holds what OneFormer's keys of the same names say; others as they are.

    Parts that both models share read one node.
    """
    if not is_oneformer(cfg):
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    shared = cfg.MODEL.MASK_FORMER
    for node, values in ((shared, cfg.MODEL.ONE_FORMER), (shared.TEST, cfg.MODEL.TEST)):
        node.update({name: value for name, value in values.items() if name in node})
    # Parity: OneFormer's pixel decoder has as many heads as its transformer decoder.
    cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = cfg.MODEL.ONE_FORMER.NHEADS
    return cfg


def own_names(message: str, cfg: Any) -> str:
    """Return a message on a config of ``as_mask_former`` with the names that the keys have in the config itself."""
    if not is_oneformer(cfg):
        return message
    message = message.replace("MODEL.MASK_FORMER.TEST.", "MODEL.TEST.")
    for name in cfg.MODEL.ONE_FORMER:
        message = message.replace(f"MODEL.MASK_FORMER.{name}", f"MODEL.ONE_FORMER.{name}")
    return message


def _add_missing_keys(cfg: Any, tree: dict[str, Any]) -> None:
    # The nodes made are of cfg's own class, so that a CfgNode of detectron2 stays one throughout.
    for key, value in tree.items():
        if not isinstance(value, dict):
            cfg.setdefault(key, copy.deepcopy(value))
            continue
        if key not in cfg:
            cfg[key] = type(cfg)()
        _add_missing_keys(cfg[key], value)
