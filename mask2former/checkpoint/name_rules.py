"""Names of tensors in two families of checkpoints, one table for both directions.

A rule pairs two templates, for instance ``layer{i}.{j}.{k}.weight`` with ``res{i+1}.{j}.conv{k}.weight``. A letter
stands for a number, which the other side may shift (``{i+1}``) or count down (``{3-i}``); ``{p}`` and ``{q}`` stand for
a part of a name, such as ``weight``. Several templates on one side mean tensors that the other side keeps stacked as
one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

Values = dict[str, int | str]

_PLACEHOLDER = re.compile(r"\{(?:(?P<base>\d+)-)?(?P<name>[a-z])(?P<offset>[+-]\d+)?\}")
_PARTS = ("p", "q")  # the placeholders that are no numbers


class Template:
    """A name with placeholders; finds their values in a name, and puts values in."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._fields = list(_PLACEHOLDER.finditer(text))
        pieces, end = [], 0
        for found in self._fields:
            pattern = r"([^.]+)" if found["name"] in _PARTS else r"(\d+)"
            pieces += [re.escape(text[end : found.start()]), pattern]
            end = found.end()
        self._pattern = re.compile("".join(pieces) + re.escape(text[end:]))

    def match(self, name: str) -> Values | None:
        """Return the values of the placeholders, None where the name is another."""
        found = self._pattern.fullmatch(name)
        if found is None:
            return None
        values: Values = {}
        for place, text in zip(self._fields, found.groups()):
            values[place["name"]] = text if place["name"] in _PARTS else _solve(place, int(text))
        return None if any(isinstance(value, int) and value < 0 for value in values.values()) else values

    def fill(self, values: Mapping[str, int | str]) -> str:
        """Return the name with these values."""
        return _PLACEHOLDER.sub(lambda place: str(_evaluate(place, values[place["name"]])), self.text)


def _evaluate(place: re.Match[str], value: int | str) -> int | str:
    if isinstance(value, str):
        return value
    return int(place["base"]) - value if place["base"] else value + int(place["offset"] or 0)


def _solve(place: re.Match[str], shown: int) -> int:
    """Return the value of a placeholder that shows this number."""
    return int(place["base"]) - shown if place["base"] else shown - int(place["offset"] or 0)


@dataclass(frozen=True)
class Rule:
    """Their name or names, and ours; where they have several they are ours stacked along the first dimension."""

    theirs: str | tuple[str, ...]
    ours: str

    @cached_property
    def their_templates(self) -> tuple[Template, ...]:
        """The templates of their side, in stacking order."""
        return tuple(Template(text) for text in ([self.theirs] if isinstance(self.theirs, str) else self.theirs))

    @cached_property
    def our_template(self) -> Template:
        """The template of our side."""
        return Template(self.ours)


@dataclass
class Renamed:
    """Tensors under their new names, the names that no rule knows (kept as they are), and those left out."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)


def rename_to_ours(tensors: Mapping[str, Tensor], rules: Sequence[Rule], *, drop: Iterable[str] = ()) -> Renamed:
    """Apply the first fitting rule to each name; names that a pattern of ``drop`` finds are left out."""
    result, stacks = Renamed(), _Stacks()
    dropped = re.compile("|".join(drop) or r"(?!)")
    for name, tensor in tensors.items():
        if dropped.search(name):
            result.dropped.append(name)
            continue
        target = _find_ours(name, rules)
        if target is None:
            result.unknown.append(name)
            result.tensors[name] = tensor
            continue
        ours, position, count = target
        if count == 1:
            result.tensors[ours] = tensor
        else:
            stacks.add(ours, tensor, name=name, position=position, count=count)
    result.tensors |= stacks.stacked()
    result.unknown += stacks.incomplete()
    return result


def rename_from_ours(tensors: Mapping[str, Tensor], rules: Sequence[Rule], *, drop: Iterable[str] = ()) -> Renamed:
    """Rename in the other direction: apply the first rule whose side of ours fits, and split stacked tensors."""
    result = Renamed()
    dropped = re.compile("|".join(drop) or r"(?!)")
    for name, tensor in tensors.items():
        if dropped.search(name):
            result.dropped.append(name)
            continue
        theirs = _find_theirs(name, rules)
        if not theirs:
            result.unknown.append(name)
            result.tensors[name] = tensor
            continue
        result.tensors |= dict(zip(theirs, tensor.chunk(len(theirs)) if len(theirs) > 1 else (tensor,)))
    return result


def _find_ours(name: str, rules: Sequence[Rule]) -> tuple[str, int, int] | None:
    """Return our name, the position within its stack and the height of that stack."""
    for rule in rules:
        for position, template in enumerate(rule.their_templates):
            values = template.match(name)
            if values is not None:
                return rule.our_template.fill(values), position, len(rule.their_templates)
    return None


def _find_theirs(name: str, rules: Sequence[Rule]) -> list[str]:
    for rule in rules:
        values = rule.our_template.match(name)
        if values is not None:
            return [template.fill(values) for template in rule.their_templates]
    return []


class _Stacks:
    """Collects the parts of stacked tensors, which come in any order."""

    def __init__(self) -> None:
        self._parts: dict[str, list[tuple[str, Tensor] | None]] = {}

    def add(self, ours: str, tensor: Tensor, *, name: str, position: int, count: int) -> None:
        self._parts.setdefault(ours, [None] * count)[position] = (name, tensor)

    def stacked(self) -> dict[str, Tensor]:
        complete = {ours: [part for part in parts if part] for ours, parts in self._parts.items() if all(parts)}
        return {ours: torch.cat([tensor for _, tensor in parts]) for ours, parts in complete.items()}

    def incomplete(self) -> list[str]:
        return [part[0] for parts in self._parts.values() if not all(parts) for part in parts if part]
