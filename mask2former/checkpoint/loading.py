"""Loading weights into a model, with a report of what matched and what did not."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mask2former.checkpoint.reader import load_state
from mask2former.errors import CheckpointError

_WRAPPER_KEYS = ("model", "state_dict", "model_state_dict")
_WRAPPER_PREFIX = "module."
_MAX_LISTED = 8  # names per list in the log; the report object holds all


@dataclass(frozen=True)
class LoadReport:
    """What happened to each name; shapes are (in the checkpoint, in the model)."""

    source: str
    matched: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Every value of the model came from the checkpoint."""
        return not self.missing and not self.mismatched

    def format(self) -> str:
        """The report in a few lines for the log."""
        total = len(self.matched) + len(self.missing) + len(self.mismatched)
        lines = [f"{self.source}: {len(self.matched)} of {total} tensors of the model loaded"]
        if self.mismatched:
            shapes = [f"{name} {theirs} here {ours}" for name, (theirs, ours) in self.mismatched.items()]
            lines += _format_list("of another shape, keep their initial values", shapes)
        lines += _format_list("not in the checkpoint, keep their initial values", self.missing)
        lines += _format_list("in the checkpoint but not in the model, ignored", self.unexpected)
        return "\n".join(lines)


def load_weights(model: nn.Module, path: str | Path) -> LoadReport:
    """Loads a checkpoint file into a model and logs the report.

    Raises:
        CheckpointError: the file cannot be read safely, or no parameter of the model is in it.
    """
    state = load_state(path)
    report = load_state_dict(
        model, find_weights(state), source=str(path), match_suffixes=bool(state.get("matching_heuristics"))
    )
    level = logging.INFO if report.is_complete else logging.WARNING
    logging.getLogger(__name__).log(level, "%s", report.format())
    return report


def find_weights(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The name-to-tensor mapping inside a checkpoint, whichever key holds it."""
    for key in _WRAPPER_KEYS:
        if isinstance(state.get(key), Mapping):
            return state[key]
    return state


def load_state_dict(
    model: nn.Module, weights: Mapping[str, Any], *, source: str, match_suffixes: bool = False
) -> LoadReport:
    """Copies those weights whose name and shape fit; tensors of another shape keep their initial values.

    ``match_suffixes``: names that lack their leading parts (``res2.…`` for ``backbone.res2.…``, as backbones' files
    have them) go to the one place they fit.

    Raises:
        CheckpointError: no parameter of the model is in the checkpoint.
    """
    tensors = _to_tensors(weights)
    own = model.state_dict()
    if match_suffixes:
        tensors = _rename_by_suffix(tensors, own)
    mismatched = {
        name: (tuple(tensor.shape), tuple(own[name].shape))
        for name, tensor in tensors.items()
        if name in own and tensor.shape != own[name].shape
    }
    fitting = {name: tensor for name, tensor in tensors.items() if name not in mismatched}
    # The model's own hooks may rename entries of older files while loading, so what is missing is asked of torch.
    outcome = model.load_state_dict(fitting, strict=False)
    missing = tuple(name for name in outcome.missing_keys if name not in mismatched)
    matched = tuple(name for name in own if name not in mismatched and name not in set(missing))
    parameters = {name for name, _ in model.named_parameters()}
    if parameters and not parameters & set(matched):
        raise CheckpointError(_describe_foreign(source, tensors, own, mismatched=len(mismatched)))
    return LoadReport(source, matched, missing, tuple(outcome.unexpected_keys), mismatched)


def _to_tensors(weights: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, value in weights.items():
        if isinstance(value, np.ndarray | np.generic) and np.asarray(value).dtype.kind in "biuf":
            value = torch.from_numpy(np.array(value))
        if isinstance(value, torch.Tensor):
            tensors[str(name)] = value
    if tensors and all(name.startswith(_WRAPPER_PREFIX) for name in tensors):
        return {name.removeprefix(_WRAPPER_PREFIX): tensor for name, tensor in tensors.items()}
    return tensors


def _rename_by_suffix(tensors: dict[str, torch.Tensor], own: Iterable[str]) -> dict[str, torch.Tensor]:
    """Each model entry takes the longest checkpoint name that ends it at a dot; a name goes to one entry only."""
    renamed: dict[str, torch.Tensor] = {}
    taken: dict[str, list[str]] = {}
    for name in own:
        parts = name.split(".")
        suffixes = (".".join(parts[i:]) for i in range(len(parts)))
        source = next((suffix for suffix in suffixes if suffix in tensors), None)
        if source is not None:
            taken.setdefault(source, []).append(name)
    for source, tensor in tensors.items():
        targets = taken.get(source, [])
        renamed[targets[0] if len(targets) == 1 else source] = tensor
    return renamed


def _describe_foreign(
    source: str, tensors: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], *, mismatched: int
) -> str:
    return (
        f"{source}: a checkpoint for another model: none of its {len(tensors)} tensors fits the model's {len(own)} "
        f"({mismatched} have another shape). It holds for instance {_example(tensors)}; the model {_example(own)}"
    )


def _example(names: Iterable[str]) -> str:
    return next((repr(name) for name in names), "nothing")


def _format_list(title: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f", … {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return [f"  {len(names)} {title}: {', '.join(names[:_MAX_LISTED])}{more}"]
