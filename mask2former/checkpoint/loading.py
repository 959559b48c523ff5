"""Load weights into a model, resized where shapes may differ, and report what matched and what did not."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.checkpoint.addresses import resolve_address
from mask2former.checkpoint.families import DERIVED, Family, ImageStatistics, convert_to_ours
from mask2former.checkpoint.reader import load_state
from mask2former.checkpoint.transformers_config import read_image_statistics
from mask2former.errors import CheckpointError

Shapes = tuple[tuple[int, ...], tuple[int, ...]]

_POSITION_TABLE = re.compile(r"\.relative_position_bias_table$")
_FIRST_CONVOLUTION = re.compile(r"(^|\.)(stem\.conv1|patch_embed\.proj|conv1|conv_stem|stem\.0|stem_0)\.weight$")
_NUM_COLOURS = 3
_QUERIES = re.compile(r"\.predictor\.query_(feat|embed)\.weight$")


def adapt_shapes(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], *, resize_queries: bool
) -> tuple[dict[str, Tensor], dict[str, Shapes]]:
    """Return the tensors, resized where that is possible, and the shapes (theirs, ours) of the resized ones."""
    result, adapted = dict(tensors), {}
    for name, tensor in tensors.items():
        ours = own.get(name)
        if ours is not None and _FIRST_CONVOLUTION.search(name) and _differs_in_channels(tensor, ours):
            result[name] = inflate_colours(tensor, ours.shape[1])
            adapted[name] = (tuple(tensor.shape), tuple(ours.shape))
            continue
        if ours is None or ours.shape == tensor.shape or ours.ndim != 2 or tensor.ndim != 2:
            continue
        if ours.shape[1] != tensor.shape[1]:
            continue  # other channels or heads: another network
        if _POSITION_TABLE.search(name) and _is_square(len(tensor)) and _is_square(len(ours)):
            result[name] = resize_position_table(tensor, len(ours))
        elif resize_queries and _QUERIES.search(name):
            result[name] = copy_queries(tensor, ours)
        else:
            continue
        adapted[name] = (tuple(tensor.shape), tuple(ours.shape))
    return result, adapted


def inflate_colours(weight: Tensor, num_channels: int) -> Tensor:
    """Return the weights (C, N, h, w) of a convolution of ``num_channels`` from those of RGB (C, 3, h, w).

    The three are repeated in turn, each divided by how often, so that equal channels give what equal colours gave. One
    or two channels share the sum of the three.
    """
    if num_channels < _NUM_COLOURS:
        return weight.sum(1, keepdim=True).repeat(1, num_channels, 1, 1) / num_channels
    colours = torch.arange(num_channels, device=weight.device) % _NUM_COLOURS
    return weight[:, colours] / colours.bincount()[colours].view(1, -1, 1, 1)


def resize_position_table(table: Tensor, length: int) -> Tensor:
    """Return a table of (2 w - 1)² offsets by M heads, interpolated bicubically to ``length`` offsets.

    ``length`` is a square, too.
    """
    old, new = math.isqrt(len(table)), math.isqrt(length)
    grid = table.float().T.reshape(1, -1, old, old)  # (1, M, 2w - 1, 2w - 1)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return grid.flatten(2)[0].T.to(table.dtype)


def copy_queries(queries: Tensor, ours: Tensor) -> Tensor:
    """Return rows (N, C) of as many queries as both have, then the model's own initial ones. Queries have no order."""
    count = min(len(queries), len(ours))
    return torch.cat((queries[:count].to(ours), ours[count:]))


def _differs_in_channels(weight: Tensor, ours: Tensor) -> bool:
    """Whether a convolution of RGB images fits but for the channels that it takes."""
    is_alike = weight.ndim == ours.ndim == 4 and weight.shape[0] == ours.shape[0] and weight.shape[2:] == ours.shape[2:]
    return is_alike and weight.shape[1] == _NUM_COLOURS != ours.shape[1]


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


_WRAPPER_KEYS = ("model", "state_dict", "model_state_dict")
_WRAPPER_PREFIX = "module."
_STATISTIC_TOLERANCE = 2.0  # of 255: the published means differ in their decimals
_MAX_LISTED = 8  # names per list in the log; the report object holds all


@dataclass(frozen=True)
class LoadReport:
    """The result for each name; shapes are (in the checkpoint, in the model).

    ``adapted`` were resized and loaded; ``nonfinite`` hold values that are NaN or infinite; ``notes`` are remarks for
    the user.
    """

    source: str
    matched: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    adapted: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    nonfinite: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Every value of the model came from the checkpoint."""
        return not self.missing and not self.mismatched

    def format(self) -> str:
        """Return the report in a few lines for the log."""
        total = len(self.matched) + len(self.missing) + len(self.mismatched)
        lines = [f"{self.source}: {len(self.matched)} of {total} tensors of the model loaded"]
        lines += _format_list("resized", _format_shapes(self.adapted))
        lines += _format_list("of another shape, keep their initial values", _format_shapes(self.mismatched))
        lines += _format_list("not in the checkpoint, keep their initial values", self.missing)
        lines += _format_list("with values that are NaN or infinite", self.nonfinite)
        lines += _format_list("in the checkpoint but not in the model, ignored", self.unexpected)
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)


def load_weights(model: nn.Module, path: str | Path, *, resize_queries: bool = False) -> LoadReport:
    """Load a checkpoint of any known family into a model and log the report.

    Args:
        model: is changed in place.
        path: a file, a folder of transformers, or an address, as ``load_state`` takes them. Relative position tables of
            other window sizes are interpolated, first convolutions of RGB images inflated to other channels.
        resize_queries: if the number of queries differs, copy as many as both have; the others keep their initial
            values. Otherwise queries count as having another shape.

    Raises:
        CheckpointError: the file cannot be read safely, no parameter of the model is in it, or the model was prepared
            for inference.
    """
    local = resolve_address(path)
    state = load_state(local)
    tensors, own = to_tensors(find_weights(state)), model.state_dict()
    tensors, family = _choose_names(tensors, own, source=str(path), try_suffixes="matching_heuristics" in state)
    tensors, adapted = adapt_shapes(tensors, own, resize_queries=resize_queries)
    report = load_state_dict(model, tensors, source=str(path))
    report = replace(report, adapted=adapted, notes=tuple(_note_images(model, family, source=local)))
    is_plain = report.is_complete and not report.notes and not report.nonfinite
    logging.getLogger(__name__).log(logging.INFO if is_plain else logging.WARNING, "%s", report.format())
    return report


def _choose_names(
    tensors: dict[str, torch.Tensor], own: Mapping[str, torch.Tensor], *, source: str, try_suffixes: bool
) -> tuple[dict[str, torch.Tensor], Family | None]:
    """Return the tensors under the names that fit most entries of the model: unchanged, by family, or by suffix."""

    def count(candidate: Iterable[str]) -> int:
        return sum(name in own and not re.search(DERIVED, name) for name in candidate)

    converted, refusal = None, None
    try:
        converted = convert_to_ours(tensors, source=source)
    except CheckpointError as error:  # of no backbone here, but perhaps of one that somebody registered
        refusal = error
    best, family = tensors, None
    if converted is not None and count(converted.tensors) > count(best):
        best, family = converted.tensors, converted.family
    if try_suffixes or not count(best):
        by_suffix = _rename_by_suffix(tensors, own)
        if count(by_suffix) > count(best):
            best, family = by_suffix, converted.family if converted is not None else None
    if refusal is not None and not count(best):
        raise refusal
    return best, family


def _note_images(model: nn.Module, family: Family | None, *, source: Path) -> list[str]:
    """Return a note if the weights expect other images than the model gets, by their folder or else their family."""
    mean, std = getattr(model, "pixel_mean", None), getattr(model, "pixel_std", None)
    if family is None or not isinstance(mean, torch.Tensor) or not isinstance(std, torch.Tensor):
        return []
    notes = [family.hint] if family.hint else []
    images = family.images
    stated = read_image_statistics(source) if images is not None else None
    if stated is not None:
        images = ImageStatistics("RGB", *map(tuple, stated))
    if images is None or len(mean) != len(images.mean):  # those of other channels are measured
        return notes
    if not (_is_near(mean, images.mean) and _is_near(std, images.std)):
        notes.append(_describe_images(images, mean, std))
    return notes


def _is_near(actual: torch.Tensor, expected: Sequence[float]) -> bool:
    values = actual.flatten().tolist()
    return len(values) == len(expected) and all(abs(a - e) < _STATISTIC_TOLERANCE for a, e in zip(values, expected))


def _describe_images(images: ImageStatistics, mean: torch.Tensor, std: torch.Tensor) -> str:
    return (
        f"these weights expect {images.order} images: INPUT.FORMAT {images.order} MODEL.PIXEL_MEAN {list(images.mean)} "
        f"MODEL.PIXEL_STD {list(images.std)}; the model has PIXEL_MEAN {_rounded(mean)} PIXEL_STD {_rounded(std)}"
    )


def _rounded(statistic: torch.Tensor) -> list[float]:
    return [round(value, 3) for value in statistic.flatten().tolist()]


def find_weights(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the name-to-tensor mapping inside a checkpoint, under whichever key it is."""
    for key in _WRAPPER_KEYS:
        if isinstance(state.get(key), Mapping):
            return state[key]
    return state


def load_state_dict(model: nn.Module, weights: Mapping[str, Any], *, source: str) -> LoadReport:
    """Copy those weights whose name and shape fit; tensors of another shape keep their initial values.

    Raises:
        CheckpointError: no parameter of the model is in the checkpoint, or the model was prepared for inference.
    """
    if any(getattr(module, "is_prepared", False) for module in model.modules()):
        raise CheckpointError(f"{source}: the model was prepared for inference, which merged its weights: load before")
    tensors = to_tensors(weights)
    own = model.state_dict()
    mismatched = {
        name: (tuple(tensor.shape), tuple(own[name].shape))
        for name, tensor in tensors.items()
        if name in own and tensor.shape != own[name].shape
    }
    fitting = {name: tensor for name, tensor in tensors.items() if name not in mismatched}
    # The model's own hooks may rename entries of older files while loading, so what is missing is asked of torch.
    outcome = model.load_state_dict(fitting, strict=False)
    absent = {name for name in outcome.missing_keys if name not in mismatched}
    missing = tuple(name for name in outcome.missing_keys if name in absent and not re.search(DERIVED, name))
    matched = tuple(name for name in own if name not in mismatched and name not in absent)
    parameters = {name for name, _ in model.named_parameters()}
    if parameters and not parameters & set(matched):
        raise CheckpointError(_describe_foreign(source, tensors, own, mismatched=len(mismatched)))
    unexpected = tuple(name for name in outcome.unexpected_keys if not re.search(DERIVED, name))
    nonfinite = tuple(name for name, tensor in fitting.items() if not _is_finite(tensor))
    return LoadReport(source, matched, missing, unexpected, mismatched, nonfinite=nonfinite)


def _is_finite(tensor: torch.Tensor) -> bool:
    # In float64 the sum of finite values is finite, too, and it takes no map of booleans.
    return not tensor.is_floating_point() or bool(tensor.sum(dtype=torch.float64).isfinite())


def to_tensors(weights: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the numeric entries as tensors, without the prefix that wrappers for several processes add."""
    tensors = {}
    for name, value in weights.items():
        if isinstance(value, np.ndarray | np.generic) and np.asarray(value).dtype.kind in "biuf":
            array = np.array(value)
            value = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
        if isinstance(value, torch.Tensor):
            tensors[str(name)] = value
    if tensors and all(name.startswith(_WRAPPER_PREFIX) for name in tensors):
        return {name.removeprefix(_WRAPPER_PREFIX): tensor for name, tensor in tensors.items()}
    return tensors


def _rename_by_suffix(tensors: dict[str, torch.Tensor], own: Iterable[str]) -> dict[str, torch.Tensor]:
    """Give each model entry the longest checkpoint name that ends it at a dot; a name goes to one entry only."""
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


def _format_shapes(shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> list[str]:
    return [f"{name} {theirs} here {ours}" for name, (theirs, ours) in shapes.items()]


def _format_list(title: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f", … {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return [f"  {len(names)} {title}: {', '.join(names[:_MAX_LISTED])}{more}"]
