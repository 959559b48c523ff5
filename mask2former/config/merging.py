"""Merge values into a config, with all faults in one error and all values without effect in one warning."""

from __future__ import annotations

import copy
import difflib
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fvcore.common.config import CfgNode as FvcoreCfgNode

from mask2former.config.bounds import check_bounds
from mask2former.config.keys import accepted_keys, describe_foreign, foreign_names, iter_leaves
from mask2former.config.literals import decode_text
from mask2former.config.yaml_reader import shorten, show_value
from mask2former.errors import ConfigError

_EPOCHS, _ITERATIONS = "SOLVER.MAX_EPOCHS", "SOLVER.MAX_ITER"
_WRITTEN_KEYS = 100  # a file of more was written by a run: it holds every key, so that two are no contradiction
_DECODER = "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME"
_SINGLE_SCALE_DECODER, _MULTI_SCALE = "StandardTransformerDecoder", "multi_scale_pixel_decoder"
_MAX_SHOWN = 30
_MAX_NEAREST = 3
# What the family does in any case: such a value is no disappointment.
_HOLDS_ANYWAY: Mapping[str, tuple[Any, ...]] = {
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "MODEL.MASK_ON": (True,),
    "MODEL.KEYPOINT_ON": (False,),
}

# The default null says nothing of the type.
_NUMBER_OR_NULL = ("MODEL.DiNAT.QK_SCALE", "MODEL.SWIN.QK_SCALE", "SOLVER.WEIGHT_DECAY_BIAS")

logger = logging.getLogger(__name__)


class MergeError(ConfigError):
    """What is wrong with the values that were merged.

    ``faults`` is a line for each, ``merged`` a copy of the config with the values that are right, to look for more in.
    """

    def __init__(self, faults: Sequence[str], merged: Any) -> None:
        super().__init__(format_faults(faults))
        self.faults, self.merged = list(faults), merged


def format_faults(faults: Sequence[str]) -> str:
    """Return one message for the faults of a config."""
    if len(faults) == 1:
        return faults[0]
    more = [f"… and {len(faults) - _MAX_SHOWN} more"] if len(faults) > _MAX_SHOWN else []
    return "\n  ".join([f"{len(faults)} faults in the configuration:", *faults[:_MAX_SHOWN], *more])


class FaultCollector:
    """Runs what may find a fault, one after the other, and keeps what each says."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def attempt(self, build: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Return what ``build`` returns, or None if it finds a fault or fails for want of a part that is faulty."""
        try:
            return build(*args, **options)
        except ConfigError as error:
            self.faults += [] if str(error) in self.faults else [str(error)]
        except Exception as error:  # a part that this run would not have come to
            logger.debug("looking for faults: %s", error)
        return None


@dataclass
class _Merge:
    root: FvcoreCfgNode
    assignments: list[tuple[FvcoreCfgNode, str, Any]] = field(default_factory=list)
    faults: list[tuple[str, str, str]] = field(default_factory=list)  # source, key, fault; "" for an unknown key
    idle: dict[str, None] = field(default_factory=dict)


def merge_trees(root: FvcoreCfgNode, trees: Sequence[tuple[str, Mapping[Any, Any]]]) -> None:
    """Overwrite values of ``root`` by those of each (source, tree) in turn, or none of them if one is wrong.

    Raises:
        MergeError: keys are unknown or values of another type: all of them, with the source of each.
    """
    merge = _plan(root, trees)
    if merge.faults:
        partial = copy.deepcopy(root)
        _apply(_plan(partial, trees))
        raise MergeError(_describe(merge), partial)
    _apply(merge)
    if merge.idle:
        _warn_once("; ".join(_idle(key) for key in list(merge.idle)[:_MAX_SHOWN]))


def _plan(root: FvcoreCfgNode, trees: Sequence[tuple[str, Mapping[Any, Any]]]) -> _Merge:
    merge = _Merge(root)
    for source, tree in trees:
        _merge_node(merge, root, tree, source=source, prefix="")
        _settle_length(merge, tree, source=source)
    _settle_decoder(merge, [tree for _, tree in trees])
    return merge


def _apply(merge: _Merge) -> None:
    for node, name, value in merge.assignments:
        node[name] = copy.deepcopy(value)  # an alias of YAML would change two keys


def nest(key: str, value: Any) -> dict[str, Any]:
    """Return ``A.B.C`` as a tree with one leaf."""
    tree = value
    for part in reversed(key.split(".")):
        tree = {part: tree}
    return tree  # type: ignore[no-any-return]


def _merge_node(merge: _Merge, node: Any, tree: Mapping[Any, Any], *, source: str, prefix: str) -> None:
    for name, value in tree.items():
        key = f"{prefix}{shorten(str(name))}"
        if not isinstance(name, str):
            merge.faults.append((source, key, f"keys are text, found {show_value(name)}"))
        elif name not in node:
            _add_unknown(merge, node, name, value, source=source, key=key)
        elif isinstance(node[name], FvcoreCfgNode):
            value = decode_text(value) if isinstance(value, str) else value
            if isinstance(value, Mapping):
                _merge_node(merge, node[name], value, source=source, prefix=f"{key}.")
            elif value is not None:
                held = ", ".join(list(node[name])[:4])
                merge.faults.append((source, key, f"{key} holds keys ({held}, …), found {show_value(value)}"))
        else:
            _assign(merge, node, name, value, source=source, key=key)


def _assign(merge: _Merge, node: Any, name: str, value: Any, *, source: str, key: str) -> None:
    try:
        fitting = fit_value(value, node[name]) if key not in _NUMBER_OR_NULL else _fit_number_or_null(value)
        check_bounds(key, fitting)
    except ValueError as error:
        merge.faults.append((source, key, f"{key} {error}"))
        return
    merge.assignments.append((node, name, fitting))
    accepted = accepted_keys().get(key)
    if accepted is not None:
        if fitting == accepted.default or fitting in _HOLDS_ANYWAY.get(key, ()):
            merge.idle.pop(key, None)
        else:
            merge.idle[key] = None


def _add_unknown(merge: _Merge, node: Any, name: str, value: Any, *, source: str, key: str) -> None:
    if node.is_new_allowed():
        value = type(node)(value) if isinstance(value, dict) else value
        merge.assignments.append((node, name, decode_text(value) if isinstance(value, str) else value))
        return
    # A part that is called otherwise here, with its keys one by one.
    leaves = dict(iter_leaves(value, f"{key}.")) if isinstance(value, Mapping) else {}
    foreign = [leaf for leaf in leaves if leaf in foreign_names()]
    for unknown in list(leaves) if foreign or len(leaves) == 1 else [key]:
        merge.faults.append((source, unknown, ""))


def fit_value(value: Any, current: Any) -> Any:
    """Return ``value`` in the type of the value it replaces.

    Text is read as a literal; integers become floats, and lists and tuples each other.

    Raises:
        ValueError: it is of another type.
    """
    if isinstance(value, str) and not isinstance(current, str):
        value = decode_text(value, arithmetic=True)
    elif isinstance(value, str):
        literal = decode_text(value)
        value = literal if isinstance(literal, str) else value
    if isinstance(value, float) and math.isnan(value):
        raise ValueError("must be a number, found nan")
    if isinstance(value, int) and value.bit_length() > 63:
        raise ValueError(f"must lie below 2 ** 63, found {show_value(value)}")
    if current is None or type(value) is type(current):
        return _fit_elements(value, current) if isinstance(value, (list, tuple)) else value
    if isinstance(current, float) and type(value) is int:
        return float(value)
    if isinstance(current, (list, tuple)) and isinstance(value, (list, tuple)):
        return type(current)(_fit_elements(value, current))
    hint = f"; a list of one is written [{show_value(value)}]" if isinstance(current, (list, tuple)) else ""
    raise ValueError(
        f"must be {type(current).__name__} (now {show_value(current)}), "
        f"found {type(value).__name__} {show_value(value)}{hint}"
    )


def _fit_number_or_null(value: Any) -> float | None:
    value = decode_text(value) if isinstance(value, str) else value
    return None if value is None else float(fit_value(value, 0.0))


def _fit_elements(value: Sequence[Any], current: Any) -> Sequence[Any]:
    """Return the elements after checking that they have the type of those they replace, if these share one."""
    kinds = {_kind(element) for element in current or ()}
    wrong = [element for element in value if len(kinds) == 1 and _kind(element) not in kinds]
    if wrong:
        raise ValueError(
            f"must be a {type(current).__name__} of {kinds.pop()} (now {show_value(current)}), "
            f"found {show_value(wrong[0])} in it"
        )
    return value


def _kind(value: Any) -> str:
    for kind, types in (("true and false", bool), ("numbers", (int, float)), ("text", str), ("lists", (list, tuple))):
        if isinstance(value, types):  # type: ignore[arg-type]
            return kind
    return type(value).__name__


def _settle_length(merge: _Merge, tree: Mapping[Any, Any], *, source: str) -> None:
    """Let the last source decide between epochs and iterations; one that sets both is refused."""
    solver = tree.get("SOLVER")
    solver = solver if isinstance(solver, Mapping) else {}
    if "MAX_ITER" not in solver or "MAX_EPOCHS" not in merge.root.get("SOLVER", {}):
        return
    if "MAX_EPOCHS" not in solver:
        merge.assignments.append((merge.root["SOLVER"], "MAX_EPOCHS", 0))
    elif solver["MAX_EPOCHS"] and sum(1 for _ in iter_leaves(tree)) < _WRITTEN_KEYS:
        fault = f"{_EPOCHS} and {_ITERATIONS} both say how long training is; give one of them"
        merge.faults.append((source, _EPOCHS, fault))


def _settle_decoder(merge: _Merge, trees: Sequence[Mapping[Any, Any]]) -> None:
    """Choose MaskFormer's decoder for its own configs, which do not name it: there was no other one then.

    Such a config says all of a model, MODEL.META_ARCHITECTURE too, and that queries look at a single map.
    """
    said = {key: value for tree in trees for key, value in iter_leaves(tree) if isinstance(key, str)}
    feature = said.get("MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", _MULTI_SCALE)
    if said.get("MODEL.META_ARCHITECTURE") == "MaskFormer" and feature != _MULTI_SCALE and _DECODER not in said:
        *_, name = _DECODER.split(".")
        merge.assignments.append((merge.root["MODEL"]["MASK_FORMER"], name, _SINGLE_SCALE_DECODER))
        _inform_once(f"{_DECODER}: {_SINGLE_SCALE_DECODER}, for the config is one of MaskFormer, which has no other")


def _describe(merge: _Merge) -> list[str]:
    known = [key for key in iter_keys(merge.root) if key not in accepted_keys()]
    return [
        f"{source}: {fault or f'unknown key {shorten(key)}{_suggest(known, key) if index < _MAX_SHOWN else str()}'}"
        for index, (source, key, fault) in enumerate(merge.faults)
    ]


def _suggest(known: list[str], key: str) -> str:
    """Return the name here of a key of other projects; else the nearest keys that have an effect."""
    if key in foreign_names():
        return f"; {describe_foreign(key)}"
    nearest = _nearest(known, key)
    return f"; did you mean {' or '.join(nearest)}?" if nearest else ""


def _nearest(known: list[str], key: str) -> list[str]:
    leaf = key.rsplit(".", 1)[-1]
    same_leaf = [k for k in known if k.rsplit(".", 1)[-1] == leaf]
    close = difflib.get_close_matches(shorten(key), known, n=_MAX_NEAREST, cutoff=0.75)
    if len(same_leaf) > _MAX_NEAREST:  # such as NAME, which says nothing
        same_leaf = []
    return list(dict.fromkeys([*same_leaf, *close]))[:_MAX_NEAREST]


def _idle(key: str) -> str:
    return f"{key} has no effect" + (f": {name_here}" if (name_here := describe_foreign(key)) else "")


@functools.lru_cache(maxsize=256)
def _inform_once(message: str) -> None:
    logger.info("%s", message)


@functools.lru_cache(maxsize=256)
def _warn_once(message: str) -> None:
    logger.warning("%s", message)


def iter_keys(node: FvcoreCfgNode, prefix: str = "") -> Iterator[str]:
    """Yield the full names of all keys and of the nodes that hold them."""
    for name, value in node.items():
        yield f"{prefix}{name}"
        if isinstance(value, FvcoreCfgNode):
            yield from iter_keys(value, f"{prefix}{name}.")
