"""Parts of written pages: tables in Markdown, bar charts in SVG."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

_WIDTH, _LEFT, _BAR, _GROUP, _TOP = 720, 220, 16, 50, 62
_COLORS = ("#3f51b5", "#b0b4c8")
_FONT = 'font-family="sans-serif" font-size="13" fill="#222"'


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Iterable[int]) -> str:
    """A table in Markdown; columns whose numbers are in `numeric` are aligned to the right."""
    right = set(numeric)
    rule = ["--:" if column in right else "---" for column in range(len(headers))]
    cells = [headers, rule, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def bars(title: str, names: tuple[str, str], groups: Sequence[tuple[str, float, float]]) -> str:
    """A bar chart as SVG: two bars a group, the figure at the end of each. Empty without groups."""
    if not groups:
        return ""
    height = _TOP + _GROUP * len(groups) + 8
    scale = (_WIDTH - _LEFT - 70) / max(max(ours, theirs) for _, ours, theirs in groups)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" {_FONT}>',
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="12" y="22" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for index, name in enumerate(names):
        x = _LEFT + 130 * index
        parts.append(f'<rect x="{x}" y="34" width="12" height="12" fill="{_COLORS[index]}"/>')
        parts.append(f'<text x="{x + 18}" y="45">{escape(name)}</text>')
    for row, (label, *values) in enumerate(groups):
        y = _TOP + _GROUP * row
        parts.append(f'<text x="{_LEFT - 10}" y="{y + 21}" text-anchor="end">{escape(label)}</text>')
        for index, value in enumerate(values):
            top, width = y + index * (_BAR + 2), value * scale
            parts.append(f'<rect x="{_LEFT}" y="{top}" width="{width:.1f}" height="{_BAR}" fill="{_COLORS[index]}"/>')
            parts.append(f'<text x="{_LEFT + width + 6:.1f}" y="{top + 13}">{value:.2f}</text>')
    return "\n".join([*parts, "</svg>", ""])


def flattened(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, text) of every value; names of nested ones are joined by commas."""
    if isinstance(values, Mapping) or (isinstance(values, list) and any(isinstance(v, (dict, list)) for v in values)):
        items: Iterable[tuple[Any, Any]] = values.items() if isinstance(values, Mapping) else enumerate(values, start=1)
        for name, value in items:
            yield from flattened(value, f"{prefix}, {name}" if prefix else str(name))
    elif isinstance(values, list):
        yield prefix.replace("_", " "), ", ".join(_formatted(value) for value in values)
    else:
        yield prefix.replace("_", " "), _formatted(values)


def _formatted(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
