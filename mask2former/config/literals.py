"""Values written as text: Python literals, arithmetic of numbers, and size lists. Nothing is ever executed.

Published files write ``("coco_2017_train_panoptic",)`` and ``1.0 / 1000`` as text, and tag one kind of value for
evaluation by Python, always a list over a range::

    !!python/object/apply:eval ["[int(x * 0.1 * 640) for x in range(5, 21)]"]

Expressions are parsed, and only these forms of them computed.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable
from typing import Any

_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_ROUNDINGS: dict[str, Callable[[float], int]] = {"int": int, "round": round}
_MAX_LENGTH = 1000
_MAX_TEXT = 4000  # letters of a literal: deeper expressions than this allows could exhaust the parser's stack
_NO_LITERAL = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError)


def decode_text(text: str, *, arithmetic: bool = False) -> Any:
    """Return the Python literal that ``text`` is, else ``text`` itself.

    ``arithmetic`` also computes expressions such as ``1.0 / 1000``, of numbers alone and inside lists and tuples.
    """
    if len(text) > _MAX_TEXT:
        return text
    try:
        tree = _parse(text)
        return _compute_all(tree) if arithmetic else ast.literal_eval(tree)
    except _NO_LITERAL:
        return text


def parse_size_list(expression: str) -> list[float]:
    """Return the value of ``[<arithmetic in x> for x in range(...)]``.

    Raises:
        ValueError: the expression is of any other form.
    """
    try:
        node = _parse(expression[:_MAX_TEXT])
    except _NO_LITERAL as error:
        raise ValueError(f"not a list of sizes: {expression[:80]!r}") from error
    if not isinstance(node, ast.ListComp) or len(node.generators) != 1:
        raise ValueError(f"only '[<arithmetic in x> for x in range(...)]' is understood, found {expression[:80]!r}")
    loop = node.generators[0]
    if loop.ifs or loop.is_async or not isinstance(loop.target, ast.Name):
        raise ValueError(f"only a plain loop over range(...) is understood, found {expression[:80]!r}")
    try:
        return [_compute(node.elt, {loop.target.id: x}) for x in _parse_range(loop.iter)]
    except (OverflowError, RecursionError) as error:
        raise ValueError(f"the sizes of {expression[:80]!r} cannot be computed") from error


def _parse(text: str) -> ast.expr:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # about '1 is 1' and '\d', which are no literals in any case
        warnings.simplefilter("ignore", DeprecationWarning)
        return ast.parse(text.strip(), mode="eval").body


def _parse_range(node: ast.expr) -> range:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range"):
        raise ValueError(f"expected range(...), found {_show(node)}")
    bounds = [int(_compute(argument, {})) for argument in node.args]
    if node.keywords or not 1 <= len(bounds) <= 3 or bounds[2:] == [0]:
        raise ValueError(f"expected range(...) of one to three numbers, found {_show(node)}")
    values = range(*bounds)
    if len(values) > _MAX_LENGTH:
        raise ValueError(f"a list of {len(values)} sizes is implausible, at most {_MAX_LENGTH} are read")
    return values


def _compute_all(node: ast.expr) -> Any:
    if isinstance(node, (ast.Tuple, ast.List)):
        values = [_compute_all(element) for element in node.elts]
        return tuple(values) if isinstance(node, ast.Tuple) else values
    return _compute(node, {}) if isinstance(node, ast.BinOp) else ast.literal_eval(node)


def _compute(node: ast.expr, variables: dict[str, float]) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value  # type: ignore[return-value]
    if isinstance(node, ast.Name) and node.id in variables:
        return variables[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _compute(node.left, variables), _compute(node.right, variables)
        try:
            return _OPERATORS[type(node.op)](left, right)
        except ArithmeticError as error:
            raise ValueError(f"{error} in {_show(node)}") from error
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_compute(node.operand, variables)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _ROUNDINGS:
        if len(node.args) != 1 or node.keywords:
            raise ValueError(f"{node.func.id}() takes one argument here, found {_show(node)}")
        return _ROUNDINGS[node.func.id](_compute(node.args[0], variables))
    raise ValueError(f"only arithmetic is understood, found {_show(node)}")


def _show(node: ast.expr) -> str:
    text = ast.unparse(node)
    return repr(text if len(text) <= 80 else f"{text[:80]} ...")
