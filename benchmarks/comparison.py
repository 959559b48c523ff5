"""What benchmarks require before they print a time: that both sides compute the same.

Every limit is one that a value must not exceed, written so that a value that is not a number exceeds all of them.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


class DifferenceError(AssertionError):
    """What was to be timed does not compute what it is compared with."""


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference relative to the largest expected value; not a number where either has such values."""
    found, expected = _as_exact(found, expected)
    return float((found - expected).abs().max() / expected.abs().max())


def typical_difference(found: Tensor, expected: Tensor) -> float:
    """The root mean square of differences relative to that of what is expected: a few far off weigh little."""
    found, expected = _as_exact(found, expected)
    return float((found - expected).norm() / expected.norm())


def require_at_most(differences: Mapping[str, float], limits: Mapping[str, float]) -> None:
    """Each difference against the limit of its name.

    Raises:
        DifferenceError: one is above its limit or not a number.
    """
    wrong = [name for name, difference in differences.items() if not difference <= limits[name]]
    if wrong:
        found = ", ".join(f"{name} by {differences[name]:.1e} (at most {limits[name]:.0e})" for name in wrong)
        raise DifferenceError(f"outputs differ: {found}")


def _as_exact(found: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    if found.shape != expected.shape:  # would be broadcast
        raise DifferenceError(f"expected an output of shape {tuple(expected.shape)}, found {tuple(found.shape)}")
    return found.double(), expected.double()
