"""Read config files, named by a path or as the published ones below ``configs/``.

YAML is read by a safe loader with limits, and merged over the files that it names as ``_BASE_``.
"""

from __future__ import annotations

import difflib
import functools
import os
import stat
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import BASE_KEY

from mask2former.config.literals import parse_size_list
from mask2former.errors import ConfigError

_PACKAGE = Path(__file__).parents[1]
_FOLDER = "configs"


@functools.cache
def configs_folder() -> Path:
    """Return the folder of the published config files: inside an installed package, beside the package in a clone."""
    installed = _PACKAGE / _FOLDER
    return installed if installed.is_dir() else _PACKAGE.parent / _FOLDER


def locate_config(name: str | os.PathLike[str]) -> str:
    """Return the path of a config file: ``name`` itself if there is such a file, else that of the published one.

    Published names may begin with ``configs/``. A name that is not found is returned unchanged.
    """
    given = os.fspath(name)
    path = Path(given).expanduser()
    if os.path.exists(path) or path.is_absolute():
        return given
    below = Path(*path.parts[1:]) if path.parts[:1] == (_FOLDER,) else path
    found = configs_folder() / below
    return str(found) if os.path.isfile(found) else given  # which takes names that are too long


def suggest_config(name: str) -> str:
    """Return published config names similar to a missing one, as text; empty if there is none."""
    known = {path.name: path for path in sorted(configs_folder().rglob("*.yaml"))}
    nearest = difflib.get_close_matches(Path(name).name, known, n=2, cutoff=0.8)
    paths = [known[match].relative_to(configs_folder()).as_posix() for match in nearest]
    return f"; did you mean {' or '.join(paths)}?" if paths else ""


# Far above what a config needs (a written one of 4,000 classes has 16,000 values), and read in about a second.
_MAX_BYTES = 1 << 19
_MAX_VALUES = 20_000  # with what aliases repeat
_MAX_DEPTH = 32
_MAX_SCALAR = 10_000  # letters of one value
_MAX_FILES = 32  # a file and all its bases

_EVAL_TAG = "tag:yaml.org,2002:python/object/apply:eval"
_TUPLE_TAG = "tag:yaml.org,2002:python/tuple"
_TIMESTAMP_TAG = "tag:yaml.org,2002:timestamp"
_BLANKS = " \t"
_LINE_ENDS = "#\0\r\n\x85\u2028\u2029"


def iter_config_files(filename: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (path, content) of each file that a config file inherits from, the most distant first, then its own.

    Raises:
        ConfigError: a file is missing, not YAML, not a mapping, too large, or inherits from itself.
    """
    files = list(_iter_files(filename, inherited_by=(), count=[0]))
    return iter(files)


def _iter_files(filename: str, *, inherited_by: tuple[str, ...], count: list[int]) -> Iterator[tuple[str, Any]]:
    try:
        path = os.path.realpath(os.path.expanduser(filename))
    except ValueError:  # no name of a file, as reading it will say
        path = filename
    if path in inherited_by:
        names = [os.path.basename(name) for name in (*inherited_by[inherited_by.index(path) :], path)]
        raise ConfigError(f"{shorten(filename)}: inherits from itself through {BASE_KEY}: {' → '.join(names)}")
    count[0] += 1
    if count[0] > _MAX_FILES:
        raise ConfigError(f"{inherited_by[0]}: inherits from more than {_MAX_FILES} files through {BASE_KEY}")
    content = _read_yaml(filename, inherited_by=inherited_by)
    base = content.pop(BASE_KEY, None)
    names = base if isinstance(base, list) else [] if base is None else [base]
    if not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"{filename}: {BASE_KEY} must name a file, or a list of files, found {show_value(base)}")
    for name in names:
        base_path = os.path.join(os.path.dirname(filename), os.path.expanduser(name))
        yield from _iter_files(base_path, inherited_by=(*inherited_by, path), count=count)
    yield filename, content


def _read_yaml(filename: str, *, inherited_by: tuple[str, ...]) -> dict[str, Any]:
    try:
        text = _read_text(os.path.expanduser(filename))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        origin = f" ({BASE_KEY} of {inherited_by[-1]})" if inherited_by else ""
        nearest = "" if inherited_by or not isinstance(error, FileNotFoundError) else suggest_config(filename)
        raise ConfigError(f"cannot read config file {shorten(filename)}{origin}: {reason}{nearest}") from error
    return _parse(text, filename)


def parse_config(text: str, *, source: str) -> dict[str, Any]:
    """Return the content of a config that is not in a file of its own, and so inherits from none.

    Raises:
        ConfigError: it is not YAML, not a mapping, too large, or names a base.
    """
    if len(text) > _MAX_BYTES:
        raise ConfigError(f"{source}: a config of {len(text):,} letters, expected at most {_MAX_BYTES:,}")
    content = _parse(text, source)
    if BASE_KEY in content:
        raise ConfigError(f"{source}: {BASE_KEY}: a config that is not a file inherits from none")
    return content


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        content = yaml.load(text, Loader=_ConfigLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not a readable config file: {_describe(error)}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{source}: expected KEY: VALUE pairs, found {type(content).__name__}")
    return content


def _read_text(path: str) -> str:
    """Return the text of a regular file in UTF-8, or UTF-16 with a byte order mark.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a text file.
    """
    information = os.stat(path)
    if not stat.S_ISREG(information.st_mode):
        raise ValueError("it is a folder" if stat.S_ISDIR(information.st_mode) else "it is no regular file")
    with open(path, "rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"it has {information.st_size:,} bytes, a config at most {_MAX_BYTES:,}")
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"not a text file in UTF-8 (line {line})") from error


def _describe(error: Exception) -> str:
    """Return a YAML error in one line."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return shorten(" ".join(str(error).split()))
    mark = error.problem_mark
    told = ", ".join(str(part) for part in (error.context, error.problem) if part)
    return f"{shorten(told)} (line {mark.line + 1}, column {mark.column + 1})"


def shorten(text: str, length: int = 200) -> str:
    """Return ``text``, cut after ``length`` letters."""
    return text if len(text) <= length else f"{text[:length]}…"


def show_value(value: Any, depth: int = 2) -> str:
    """Return the ``repr`` of a value, with limited length and cost."""
    if isinstance(value, str):
        return repr(shorten(value, 80))
    if isinstance(value, (list, tuple, set, dict)):
        opening, closing = {list: ("[", "]"), tuple: ("(", ")")}.get(type(value), ("{", "}"))
        if not depth and value:
            return f"{opening}…{closing}"
        pairs = value.items() if isinstance(value, dict) else ((None, entry) for entry in value)
        shown: list[str] = []
        for key, entry in pairs:
            if len(shown) == 6:
                shown.append("…")
                break
            shown.append(("" if key is None else f"{show_value(key, 0)}: ") + show_value(entry, depth - 1))
        return f"{opening}{', '.join(shown)}{closing}"
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    return shorten(repr(value), 80)


class _ConfigLoader(yaml.SafeLoader):
    """The safe loader with limits, size lists and tuples; dates stay text, and tabs may stand before comments."""

    yaml_implicit_resolvers: dict[str, Any] = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP_TAG]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._num_values = 0
        self._extent: dict[int, tuple[int, int]] = {}  # id of a node → values in it, levels below it

    def scan_to_next_token(self) -> None:
        """Skip tabs that do not indent, too, which the safe loader refuses."""
        while True:
            super().scan_to_next_token()
            length = 0
            while self.peek(length) in _BLANKS:
                length += 1
            indents = self.allow_simple_key and not self.flow_level
            if length == 0 or (indents and self.peek(length) not in _LINE_ENDS):
                return
            self.forward(length)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Count values and levels, including those that an alias repeats."""
        if self.check_event(yaml.AliasEvent):
            return self._compose_alias(parent, index)
        event = self.peek_event()
        self._depth += 1
        before = self._num_values
        self._check(event.start_mark, values=1, depth=self._depth)
        if len(getattr(event, "value", "") or "") > _MAX_SCALAR:
            raise yaml.composer.ComposerError(None, None, "a value longer than any in a config", event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        levels = 1 + max((self._extent[id(child)][1] for child in _children(node)), default=0)
        self._extent[id(node)] = self._num_values - before, levels
        return node

    def _compose_alias(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark
        node = super().compose_node(parent, index)
        if id(node) not in self._extent:
            raise yaml.composer.ComposerError(None, None, "an alias of what it stands in", mark)
        values, levels = self._extent[id(node)]
        self._check(mark, values=values, depth=self._depth + levels)
        return node

    def _check(self, mark: yaml.Mark, *, values: int, depth: int) -> None:
        self._num_values += values
        if self._num_values > _MAX_VALUES:
            raise yaml.composer.ComposerError(None, None, f"more than {_MAX_VALUES} values", mark)
        if depth > _MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested more than {_MAX_DEPTH} deep", mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse keys that are not text, and keys that occur twice."""
        seen: set[str] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} stands twice", key_node.start_mark)
            if key is not None and key != "<<":
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _children(node: Any) -> Iterator[yaml.Node]:
    for child in node.value if isinstance(node, yaml.CollectionNode) else ():
        yield from child if isinstance(child, tuple) else (child,)


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
