"""Connect to an integration by name, so that the core imports none."""

from __future__ import annotations

import importlib
import importlib.util
from collections import ChainMap
from typing import Any

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
