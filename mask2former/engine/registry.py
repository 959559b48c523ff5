"""Hooks and metric writers by registered names; a class with ``from_config``, or one that takes the config."""

from __future__ import annotations

from mask2former.config import Registry

HOOK_REGISTRY = Registry("hook", key="SOLVER.HOOKS")
WRITER_REGISTRY = Registry("metric writer", key="SOLVER.WRITERS")
