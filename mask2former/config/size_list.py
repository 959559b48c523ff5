"""Training-size lists of the published config files, computed without executing anything.

Those files tag one kind of value for evaluation by Python, always a list over a range::

    !!python/object/apply:eval ["[int(x * 0.1 * 640) for x in range(5, 21)]"]

The expression is parsed and only this form of it is computed: arithmetic on numbers and the loop variable.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable

_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_ROUNDINGS: dict[str, Callable[[float], int]] = {"int": int, "round": round}
_MAX_LENGTH = 1000


def parse_size_list(expression: str) -> list[float]:
    """Value of ``[<arithmetic in x> for x in range(...)]``.

    Raises:
        ValueError: the expression is of any other form.
    """
    try:
        node = ast.parse(expression.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"not a list of sizes: {expression!r}") from error
    if not isinstance(node, ast.ListComp) or len(node.generators) != 1:
        raise ValueError(f"only '[<arithmetic in x> for x in range(...)]' is understood, found {expression!r}")
    loop = node.generators[0]
    if loop.ifs or loop.is_async or not isinstance(loop.target, ast.Name):
        raise ValueError(f"only a plain loop over range(...) is understood, found {expression!r}")
    return [_compute(node.elt, {loop.target.id: x}) for x in _parse_range(loop.iter)]


def _parse_range(node: ast.expr) -> range:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range"):
        raise ValueError(f"expected range(...), found {ast.unparse(node)!r}")
    bounds = [int(_compute(argument, {})) for argument in node.args]
    if node.keywords or not 1 <= len(bounds) <= 3 or bounds[2:] == [0]:
        raise ValueError(f"expected range(...) of one to three numbers, found {ast.unparse(node)!r}")
    values = range(*bounds)
    if len(values) > _MAX_LENGTH:
        raise ValueError(f"a list of {len(values)} sizes is implausible, at most {_MAX_LENGTH} are read")
    return values


def _compute(node: ast.expr, variables: dict[str, float]) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value  # type: ignore[return-value]
    if isinstance(node, ast.Name) and node.id in variables:
        return variables[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _compute(node.left, variables), _compute(node.right, variables)
        try:
            return _OPERATORS[type(node.op)](left, right)
        except ZeroDivisionError as error:
            raise ValueError(f"division by zero in {ast.unparse(node)!r}") from error
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_compute(node.operand, variables)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _ROUNDINGS:
        if len(node.args) != 1 or node.keywords:
            raise ValueError(f"{node.func.id}() takes one argument here, found {ast.unparse(node)!r}")
        return _ROUNDINGS[node.func.id](_compute(node.args[0], variables))
    raise ValueError(f"only arithmetic is understood, found {ast.unparse(node)!r}")
