"""``CfgNode``: fvcore's configuration tree, read safely and with errors that name file, key and nearest keys."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import BASE_KEY
from fvcore.common.config import CfgNode as FvcoreCfgNode

from mask2former.config.size_list import parse_size_list
from mask2former.errors import ConfigError

_EVAL_TAG = "tag:yaml.org,2002:python/object/apply:eval"
_TUPLE_TAG = "tag:yaml.org,2002:python/tuple"


class CfgNode(FvcoreCfgNode):
    """A tree of configuration keys; ``cfg.MODEL.DEVICE`` reads and, until ``freeze()``, writes."""

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """Content of a config file merged over those it names as ``_BASE_``, paths relative to the file.

        Nothing is ever executed: ``allow_unsafe`` is accepted because fvcore has it, and ignored.

        Raises:
            ConfigError: a file is missing, not YAML, not a mapping, or inherits from itself.
        """
        tree: dict[str, Any] = {}
        for _, content in _iter_files(filename, inherited_by=()):
            _overlay(tree, content)
        return tree

    def merge_from_file(self, cfg_filename: str | os.PathLike[str], allow_unsafe: bool = False) -> None:
        """Overwrite keys by those of a config file and its bases.

        Raises:
            ConfigError: as ``load_yaml_with_base``, or a key is unknown or its value of another type.
        """
        for path, content in _iter_files(os.fspath(cfg_filename), inherited_by=()):
            _merge(self, content, source=path, prefix="")

    def merge_from_list(self, cfg_list: Sequence[Any]) -> None:
        """Overwrite keys by ``[KEY, VALUE, KEY, VALUE, ...]``; values given as text are read as Python literals.

        Raises:
            ConfigError: a key is unknown, or without value, or its value is of another type.
        """
        if len(cfg_list) % 2:
            raise ConfigError(f"options come as KEY VALUE pairs, but {cfg_list[-1]!r} has no value")
        for key, value in zip(cfg_list[::2], cfg_list[1::2], strict=True):
            tree: Any = self._decode_cfg_value(value)
            for part in reversed(str(key).split(".")):
                tree = {part: tree}
            _merge(self, tree, source="command line", prefix="")


class _ConfigLoader(yaml.SafeLoader):
    """The safe loader, plus sizes computed arithmetically and tuples."""


def _construct_size_list(loader: yaml.SafeLoader, node: yaml.Node) -> list[float]:
    arguments = loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else []
    if len(arguments) != 1 or not isinstance(arguments[0], str):
        raise ValueError("this tag takes one expression, nothing else")
    return parse_size_list(arguments[0])


def _construct_tuple(loader: yaml.SafeLoader, node: yaml.Node) -> tuple[Any, ...]:
    if not isinstance(node, yaml.SequenceNode):
        raise ValueError("a tuple is written as a sequence")
    return tuple(loader.construct_sequence(node, deep=True))


_ConfigLoader.add_constructor(_EVAL_TAG, _construct_size_list)
_ConfigLoader.add_constructor(_TUPLE_TAG, _construct_tuple)


def _iter_files(filename: str, *, inherited_by: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, content) of a config file after those of its bases."""
    path = os.path.realpath(os.path.expanduser(filename))
    if path in inherited_by:
        raise ConfigError(f"{filename}: inherits from itself through {BASE_KEY}")
    content = _read_yaml(filename, inherited_by=inherited_by)
    base = content.pop(BASE_KEY, None)
    for name in base if isinstance(base, list) else [base] if base else []:
        base_path = os.path.join(os.path.dirname(filename), os.path.expanduser(str(name)))
        yield from _iter_files(base_path, inherited_by=(*inherited_by, path))
    yield filename, content


def _read_yaml(filename: str, *, inherited_by: tuple[str, ...]) -> dict[str, Any]:
    try:
        text = Path(filename).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        origin = f" ({BASE_KEY} of {inherited_by[-1]})" if inherited_by else ""
        raise ConfigError(f"cannot read config file {filename}{origin}: {reason}") from error
    try:
        content = yaml.load(text, Loader=_ConfigLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{filename}: not a readable config file: {_describe(error)}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{filename}: expected KEY: VALUE pairs, found {type(content).__name__}")
    return content


def _describe(error: Exception) -> str:
    """One line, where YAML's own description takes several."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    return f"{error.problem} (line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1})"


def _overlay(tree: dict[str, Any], content: dict[str, Any]) -> None:
    for key, value in content.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _overlay(tree[key], value)
        else:
            tree[key] = value


def _merge(node: CfgNode, tree: dict[str, Any], *, source: str, prefix: str, root: CfgNode | None = None) -> None:
    root = node if root is None else root
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if name not in node:
            raise ConfigError(f"{source}: unknown key {key}{_suggest(root, key)}")
        current = node[name]
        if not isinstance(current, CfgNode):
            node[name] = _coerce(value, current, source=source, key=key)
        elif isinstance(value, dict):
            _merge(current, value, source=source, prefix=f"{key}.", root=root)
        elif value is not None:
            raise ConfigError(f"{source}: {key} holds keys ({', '.join(list(current)[:4])}, …), found {value!r}")


def _coerce(value: Any, current: Any, *, source: str, key: str) -> Any:
    """``value`` in the type of the value it replaces; integers stand for floats, lists for tuples and the reverse."""
    if current is None or value is None or type(value) is type(current):
        return value
    if isinstance(current, float) and type(value) is int:
        return float(value)
    if isinstance(current, float) and isinstance(value, str):
        try:  # YAML reads 1e-4, without a point, as text
            return float(value)
        except ValueError:
            pass
    if isinstance(current, (list, tuple)) and isinstance(value, (list, tuple)):
        return type(current)(value)
    raise ConfigError(
        f"{source}: {key} must be {type(current).__name__} (now {current!r}), found {type(value).__name__} {value!r}"
    )


def _suggest(root: CfgNode, key: str) -> str:
    known = list(_iter_keys(root))
    nearest = difflib.get_close_matches(key, known, n=3, cutoff=0.75)
    same_leaf = [k for k in known if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    nearest = list(dict.fromkeys([*same_leaf[:3], *nearest]))[:3]
    return f"; did you mean {' or '.join(nearest)}?" if nearest else ""


def _iter_keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        yield f"{prefix}{name}"
        if isinstance(value, CfgNode):
            yield from _iter_keys(value, f"{prefix}{name}.")
