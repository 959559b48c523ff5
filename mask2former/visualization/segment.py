"""What is painted over a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Segment:
    """One thing to paint.

    mask: (H, W) bool; color: (3,) uint8 RGB; label: text, "" for none; is_thing: outlined strongly and named first.
    """

    mask: np.ndarray
    color: np.ndarray
    label: str
    is_thing: bool
