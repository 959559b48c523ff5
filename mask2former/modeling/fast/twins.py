"""Faster twins of plain layers, and the pass over a built model that puts them in place."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules import module as torch_module

ModelT = TypeVar("ModelT", bound=nn.Module)
TwinT = TypeVar("TwinT", bound=type[nn.Module])

_PACKAGE = "mask2former"
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class _Twin:
    cls: type[nn.Module]
    sources: tuple[type[nn.Module], ...]  # the plain classes whose mathematics it has written out
    digest: str


_TWINS: dict[type[nn.Module], _Twin] = {}
_PLAIN_TYPES: dict[type[nn.Module], type[nn.Module]] = {}


def twin_of(plain: type[nn.Module], *others: type[nn.Module], digest: str = "") -> Callable[[TwinT], TwinT]:
    """Declare a subclass of ``plain`` as its faster twin; ``others`` are classes whose calls the twin may skip.

    ``digest`` is the ``source_digest`` of them all: if one of them was edited, the twin is not used. Without a digest,
    as for PyTorch's own classes, it always is.
    """

    def declare(twin: TwinT) -> TwinT:
        assert issubclass(twin, plain)
        _TWINS[plain] = _Twin(twin, (plain, *others), digest)
        _PLAIN_TYPES[twin] = plain
        return twin

    return declare


def accelerate(model: ModelT) -> ModelT:
    """Replace the class of each part of ``model`` that has a faster twin, in place, and return the model.

    Parts are recognised by their exact type; one that is subclassed or wrapped, or whose source was edited, is not
    changed, nor are PyTorch's layers in networks of other packages. A second call changes nothing.
    """
    for module, is_ours in _walk(model, is_ours=True):
        twin = _TWINS.get(type(module))
        if twin is None or "forward" in vars(module) or not is_unedited(type(module)):
            continue
        if is_ours or type(module).__module__.startswith(_PACKAGE):
            module.__class__ = twin.cls
    return model


def speed_up(model: nn.Module, cfg: Any, *, is_wanted: bool) -> None:
    """Accelerate a model in place if that is wanted; else MODEL.CHANNELS_LAST says whether its layout changes."""
    if is_wanted:
        accelerate(model)
    if is_wanted or cfg.MODEL.CHANNELS_LAST:
        use_channels_last(model)


def use_channels_last(model: ModelT) -> ModelT:
    """Store the weights of convolutions channels last, in place, so that all maps have this layout.

    Convolutions on CPUs are faster in this layout, and tokens need no copy.
    """
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def plain_type(module: nn.Module) -> type[nn.Module]:
    """Return the type that the module had before ``accelerate``."""
    return _PLAIN_TYPES.get(type(module), type(module))


def has_hooks(module: nn.Module) -> bool:
    """Return whether ``module`` or a module below it has hooks or a replaced forward.

    What they see must be neither skipped nor overwritten.
    """
    if any(getattr(torch_module, f"_global{name}") for name in _HOOKS):
        return True
    return any("forward" in vars(m) or any(getattr(m, name) for name in _HOOKS) for m in module.modules())


def source_digest(*classes: type[nn.Module]) -> str:
    """Return eight hex digits that change with any statement of the methods, except constructors and comments."""
    methods = [
        function
        for cls in classes
        for name, function in vars(cls).items()
        if isinstance(function, FunctionType) and name not in ("__init__", "from_config")
    ]
    return hashlib.sha256("\n".join(map(_statements_of, methods)).encode()).hexdigest()[:8]


@functools.cache
def _statements_of(function: FunctionType) -> str:
    try:
        source = textwrap.dedent(inspect.getsource(function))
        definition = ast.parse(source).body[0]
    except (OSError, SyntaxError):  # made at run time, or an installation without sources
        return repr(function.__code__.co_code)
    assert isinstance(definition, ast.FunctionDef)
    has_docstring = ast.get_docstring(definition) is not None
    first = definition.body[int(has_docstring)].lineno if len(definition.body) > has_docstring else len(source)
    # As written, not as ``ast`` writes it, and without spaces and braces: Python versions differ in those.
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    kept = "".join(token.string for token in tokens if token.type != tokenize.COMMENT and token.start[0] >= first)
    return re.sub(r"[\s{}]", "", kept)


def is_unedited(plain: type[nn.Module]) -> bool:
    """Return whether the class and those whose calls its twin may skip have the source that the twin expects."""
    twin = _TWINS[plain]
    return not twin.digest or twin.digest == source_digest(*twin.sources)


def _walk(module: nn.Module, *, is_ours: bool) -> Iterator[tuple[nn.Module, bool]]:
    """Yield ``module`` and all below it, each with whether the nearest part around it beyond PyTorch's is ours.

    The parts of somebody else's subclass of a class of this package count as this package's.
    """
    packages = {cls.__module__.partition(".")[0] for cls in type(module).__mro__} - {"torch", "builtins"}
    if packages:
        is_ours = _PACKAGE in packages
    yield module, is_ours
    for child in module.children():
        yield from _walk(child, is_ours=is_ours)
