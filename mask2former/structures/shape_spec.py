"""The shape of a feature map that a module returns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ShapeSpec:
    """Channels of a feature map, its stride to the image in pixels, and its size where that is fixed."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
