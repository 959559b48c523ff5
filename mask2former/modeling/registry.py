"""Registries of the exchangeable model parts, and the one way to build a registered part from a config.

A registered component takes keyword arguments and knows nothing of the config; its `from_config(cls, cfg, ...)`
translates a config into those arguments. Registries hold the names that configs in the world use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fvcore.common.registry import Registry

from mask2former.errors import ConfigError, InputError

META_ARCH_REGISTRY = Registry("META_ARCH")
BACKBONE_REGISTRY = Registry("BACKBONE")
SEM_SEG_HEADS_REGISTRY = Registry("SEM_SEG_HEADS")
TRANSFORMER_DECODER_REGISTRY = Registry("TRANSFORMER_DECODER")

Component = TypeVar("Component")


def build_from_config(component: Callable[..., Component], cfg: Any, *args: Any) -> Component:
    """Builds a component from `component.from_config(cfg, *args)`, or calls a plain builder with `(cfg, *args)`.

    Raises:
        ConfigError: also where the component refuses the values that it was given.
    """
    from_config = getattr(component, "from_config", None)
    if from_config is None:
        return component(cfg, *args)
    try:
        return component(**from_config(cfg, *args))
    except InputError:
        raise
    except ValueError as error:
        raise ConfigError(f"{getattr(component, '__name__', component)}: {error}") from error


def lookup(registry: Registry, name: str, *, key: str) -> Any:
    """The entry called `name`; a ConfigError that names the config key and the known names where there is none."""
    if name not in registry:
        known = ", ".join(sorted(entry for entry, _ in registry))
        raise ConfigError(f"{key}: expected one of {known}; found {name!r}")
    return registry.get(name)
