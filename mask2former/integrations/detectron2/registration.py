"""How detectron2 makes what it finds in a registry, and how names are looked up in its registries and ours."""

from __future__ import annotations

from typing import Any

from detectron2.config import configurable
from fvcore.common.registry import Registry

from mask2former.config import Registry as OurRegistry
from mask2former.config import build_from_config
from mask2former.modeling import accelerate


class FromConfig:
    """Base of modules that are made from a config and what follows it, or from keyword arguments."""

    @configurable
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        accelerate(self)  # type: ignore[type-var]


def build_named(name: str, theirs: Registry, ours: OurRegistry, *args: Any, key: str) -> Any:
    """What is registered as `name` in detectron2, or else with us, made from `args`, the first of which is the config.

    Raises:
        ConfigError: neither knows the name, which the config gives as `key`.
    """
    if name in theirs:
        return theirs.get(name)(*args)
    return build_from_config(ours.lookup(name, key=key), *args)
