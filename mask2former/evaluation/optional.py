"""Evaluation packages that are optional, adapted to the installed numpy."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

import numpy as np

from mask2former.errors import ConfigError

# What older packages call and newer numpy no longer has.
_REMOVED_FROM_NUMPY = {"in1d": np.isin, "float": float}


def is_installed(package: str) -> bool:
    """Return whether a package can be imported, found without importing it."""
    return importlib.util.find_spec(package) is not None


def import_optional(module: str, *, extra: str) -> ModuleType:
    """Import a module that ``pip install mask2former[extra]`` installs; its ``np`` gets the names numpy has dropped.

    Raises:
        ConfigError: the module, or something that it needs, is not installed.
    """
    try:
        imported = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"this evaluation needs {module.split('.')[0]} ({error}): pip install 'mask2former[{extra}]'"
        ) from error
    if getattr(imported, "np", None) is np:
        imported.np = _CompleteNumpy("numpy")  # type: ignore[attr-defined]
    return imported


class _CompleteNumpy(ModuleType):
    """numpy with its dropped names, for one module only; numpy itself is not changed."""

    def __getattr__(self, name: str) -> Any:
        if name in _REMOVED_FROM_NUMPY and name not in np.__dict__:
            return _REMOVED_FROM_NUMPY[name]
        return getattr(np, name)
