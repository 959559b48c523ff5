"""Check that percentages are percentages, compare results with expected values, and format tables for the log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mask2former.config import CfgNode
from mask2former.errors import ConfigError, InputError
from mask2former.evaluation.protocol import Results

# Sums of quotients may pass 100 by rounding alone.
_ROUNDING = 1e-6


def check_percentages(results: Results) -> Results:
    """Return the results after checking that every value lies in 0..100 or is NaN (nothing to measure).

    Raises:
        InputError: a value lies outside: ground truth or predictions contradict themselves.
    """
    for task, metrics in results.items():
        for name, value in metrics.items():
            if not math.isnan(value) and not -_ROUNDING <= value <= 100 + _ROUNDING:
                raise InputError(
                    f"{task}/{name} is {value}, a percentage lies in 0..100: ground truth contradicts itself "
                    "(areas in the json that are not those of the masks?)"
                )
    return results


def verify_results(cfg: CfgNode, results: Mapping[str, Mapping[str, float]]) -> None:
    """Compare with ``cfg.TEST.EXPECTED_RESULTS``, a list of [task, metric, value, tolerance].

    Raises:
        ConfigError: an entry is malformed or names a task or metric that was not evaluated.
        InputError: a value is further from the expected one than its tolerance.
    """
    failures = []
    for entry in cfg.TEST.EXPECTED_RESULTS:
        task, metric, expected, tolerance = _parse_expectation(entry)
        if task not in results:
            raise ConfigError(f"TEST.EXPECTED_RESULTS: task {task!r} was not evaluated, there are {sorted(results)}")
        if metric not in results[task]:
            known = list(results[task])
            raise ConfigError(f"TEST.EXPECTED_RESULTS: {task!r} has no metric {metric!r}, there are {known}")
        actual = results[task][metric]
        # Written so that NaN fails.
        if not abs(actual - expected) <= tolerance:
            failures.append(f"{task}/{metric}: expected {expected} ± {tolerance}, found {actual}")
    if failures:
        raise InputError("results differ from TEST.EXPECTED_RESULTS: " + "; ".join(failures))


def _parse_expectation(entry: Any) -> tuple[str, str, float, float]:
    try:
        task, metric, expected, tolerance = entry
        return str(task), str(metric), float(expected), float(tolerance)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"TEST.EXPECTED_RESULTS: an entry is [task, metric, value, tolerance], found {entry!r}"
        ) from error


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table in plain text, columns aligned; fractions with two decimals, a dash for NaN."""
    cells = [list(header)] + [[_format_cell(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        first = row[0].ljust(widths[0])
        return "| " + " | ".join([first] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(cells[0]), rule] + [line(row) for row in cells[1:]])


def _format_cell(cell: object) -> str:
    if isinstance(cell, float):
        return "-" if math.isnan(cell) else f"{cell:.2f}"
    return str(cell)
