"""Registries: the parts that a config names, ours and those that a module given with ``--import`` adds.

    @BACKBONE_REGISTRY.register()
    class MyBackbone(Backbone): ...

A part is built from a config by ``build_from_config``: by its ``from_config``, or else by calling it with the config.
Integrations are reached by name, so that the core imports none.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections import ChainMap
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

from fvcore.common.registry import Registry as FvcoreRegistry

from mask2former.errors import ConfigError, InputError

Component = TypeVar("Component")
Part = TypeVar("Part", bound=Callable[..., Any])


class Registry(FvcoreRegistry):
    """Parts of one kind by name."""

    def __init__(self, kind: str, *, key: str = "") -> None:
        """``kind`` is what the parts are called in messages; ``key`` is the config key that names one."""
        super().__init__(kind)
        self.kind, self.key = kind, key

    def register(self, obj: Any = None, *, name: str | None = None) -> Any:
        """Add a class or builder under ``name``, by default its own; without ``obj``, return a decorator.

        Raises:
            ConfigError: the name is taken.
        """
        if obj is None:
            return lambda part: self.register(part, name=name)
        self._do_register(obj.__name__ if name is None else name, obj)
        return obj

    def lookup(self, name: str, *, key: str | None = None) -> Any:
        """Return the part ``name``; errors mention the config key ``key``.

        Raises:
            ConfigError: there is none; names the nearest and all known names.
        """
        if name in self:
            return self.get(name)
        nearest = difflib.get_close_matches(str(name), self.names(), n=3)
        hint = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
        key = self.key if key is None else key
        known = ", ".join(sorted(self.names())) or "the names that modules register, and none did"
        raise ConfigError(f"{key}: expected one of {known}; found {name!r}{hint}")

    def names(self) -> list[str]:
        """Return the names, in the order of registration."""
        return [name for name, _ in self]

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(list(self._obj_map.items()))

    def _do_register(self, name: str, obj: Any) -> None:
        known = self._obj_map.get(name)
        # The same definition again, of a module that was reloaded, replaces itself.
        if known is not None and known is not obj and _origin(known) != _origin(obj):
            raise ConfigError(f"{self.kind} {name!r} is {_origin(known)}: {_origin(obj)} needs another name")
        self._obj_map[name] = obj


def _origin(part: Any) -> str:
    return f"{getattr(part, '__module__', '')}.{getattr(part, '__qualname__', part)}"


def build_callable(part: Any, cfg: Any) -> Any:
    """Return a registered function, or what ``from_config`` of a registered class builds."""
    return build_from_config(part, cfg) if hasattr(part, "from_config") else part


def build_from_config(component: Callable[..., Component], cfg: Any, *args: Any) -> Component:
    """Build a component by ``component.from_config(cfg, *args)``, or call a plain builder with ``(cfg, *args)``.

    ``from_config`` returns keyword arguments, or the component itself.

    Raises:
        ConfigError: the component refuses the values that it was given.
    """
    from_config = getattr(component, "from_config", None)
    if from_config is None:
        return component(cfg, *args)
    try:
        built = from_config(cfg, *args)
        if isinstance(component, type) and isinstance(built, component):
            return cast(Component, built)
        return component(**built)
    except InputError:
        raise
    except ValueError as error:
        raise ConfigError(f"{getattr(component, '__name__', component)}: {error}") from error


DETECTRON2 = "detectron2"


class LinkedNames(ChainMap[str, Any]):
    """The names of two catalogs: new ones are added to the first, and each is removed from where it is."""

    def __delitem__(self, name: str) -> None:
        del next((names for names in self.maps if name in names), self.maps[0])[name]

    def pop(self, name: str, *default: Any) -> Any:
        """Remove a name and return its value, as a dictionary does."""
        return next((names for names in self.maps if name in names), self.maps[0]).pop(name, *default)


def load_integration(framework: str) -> bool:
    """Import the integration of ``framework``; return False if the framework is not installed."""
    if importlib.util.find_spec(framework) is None:
        return False
    importlib.import_module(f"mask2former.integrations.{framework}")
    return True


def comes_from(value: Any, framework: str) -> bool:
    """Return whether ``value`` is of a class of ``framework``, or of one derived from it."""
    return any(base.__module__.partition(".")[0] == framework for base in type(value).__mro__)
