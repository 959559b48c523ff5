"""The tables of keys: those that are read, those only accepted, and those that a project registers.

Descriptions stand beside the defaults in the YAML files; error messages and the reference page take them from there.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any

import yaml

from mask2former.errors import ConfigError

_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z][A-Z0-9_]*)*")
_LINE = re.compile(r"( *)([A-Z][A-Za-z0-9_]*):(.*)")  # MODEL.DiNAT is not in capitals
_COMMENT_LINE = re.compile(r" +# ?(.*)")
_COMMENT_BESIDE = re.compile(r"(?:^| )# (.*)")
_REGISTERED: dict[str, Key] = {}


@dataclass(frozen=True)
class Key:
    """The default of a key, which also determines its type, and a description of one line."""

    default: Any
    description: str = ""


def register_keys(defaults: Mapping[str, Any]) -> None:
    """Add keys of your own, nested as in a file or by full names, to all configs made from now on.

    Call it in a module that ``--import`` names, which is imported before the config is read. A default may have a
    description: ``register_keys({"MODEL": {"MY_BACKBONE": {"DEPTH": Key(18, "number of layers")}}})``.

    Raises:
        ConfigError: a key exists already, is not in capitals, or has a default that is no plain value.
    """
    added = {key: entry if isinstance(entry, Key) else Key(entry) for key, entry in iter_leaves(defaults)}
    taken = {**accepted_keys(), **read_keys(), **_REGISTERED}
    faults = [fault for key, entry in added.items() if (fault := _find_fault(key, entry, taken))]
    if faults:
        raise ConfigError("register_keys: " + "; ".join(faults))
    _REGISTERED.update(added)


def _find_fault(key: str, entry: Key, taken: Mapping[str, Key]) -> str:
    """Return what is wrong with a key to be registered; empty where nothing is."""
    if not _KEY.fullmatch(key):
        return f"{key!r} must be written as MODEL.PART.NAME, in capitals"
    if _REGISTERED.get(key) == entry:  # a module imported once more
        return ""
    if key in taken:
        return f"{key} exists already, with the default {taken[key].default!r}"
    above = next((known for known in taken if key.startswith(f"{known}.")), None)
    if above is not None:
        return f"{above} exists already and holds a value: {key} cannot stand below it"
    if any(known.startswith(f"{key}.") for known in taken):
        return f"{key} exists already and holds keys"
    if not isinstance(entry.default, (str, int, float, bool, list, tuple, type(None))):
        return f"{key}: the default must be a number, text, true or false, or a list, found {entry.default!r}"
    return ""


def registered_keys() -> Mapping[str, Key]:
    """Return the keys that ``register_keys`` added."""
    return MappingProxyType(_REGISTERED)


@functools.cache
def default_documents() -> tuple[dict[str, Any], ...]:
    """Return the trees of ``defaults.yaml``: keys of detectron2, Mask2Former, video, OneFormer, and of running them."""
    return tuple(yaml.safe_load_all(_read("defaults.yaml")))


@functools.cache
def accepted_document() -> dict[str, Any]:
    """Return the tree of keys that are accepted without effect, with their defaults."""
    return dict(yaml.safe_load(_read("accepted.yaml")))


@functools.cache
def read_keys() -> Mapping[str, Key]:
    """Return the keys that have an effect, by their full names."""
    descriptions = read_descriptions(_read("defaults.yaml"))
    leaves = {key: value for tree in default_documents() for key, value in iter_leaves(tree)}
    return MappingProxyType({key: Key(value, descriptions.get(key, "")) for key, value in sorted(leaves.items())})


@functools.cache
def accepted_keys() -> Mapping[str, Key]:
    """Return the keys without effect, which are accepted because published files hold them."""
    return MappingProxyType({key: Key(value) for key, value in iter_leaves(accepted_document())})


@functools.cache
def foreign_names() -> Mapping[str, str]:
    """Return keys of other projects, each with its name here, or why it has none."""
    return MappingProxyType(dict(yaml.safe_load(_read("foreign_keys.yaml"))))


def describe_foreign(key: str) -> str:
    """Return the name here of a key of other projects, or why it has none; empty for an unknown key."""
    name = foreign_names().get(key, "")
    return f"it is called {name} here" if name.split(",")[0] in read_keys() else name


def iter_leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (full key, value) of everything that is not a mapping."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from iter_leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def read_descriptions(text: str) -> dict[str, str]:
    """Return the comment of each key of a YAML file of nested keys: beside the key, or in the lines above it."""
    found: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    above: list[str] = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            comment = _COMMENT_LINE.match(line)
            above = [*above, comment[1]] if comment else []
            continue
        indent, key, rest = len(match[1]), match[2], match[3]
        parents = [*(parent for parent in parents if parent[0] < indent), (indent, key)]
        beside = _COMMENT_BESIDE.search(rest)
        description = " ".join([*above, *([beside[1]] if beside else [])])
        if description:
            found[".".join(name for _, name in parents)] = description
        above = []
    return found
