"""Conditions on manifest rows, as a person types them: `status == "ok" and fov_x_median_deg > 60`."""

from __future__ import annotations

import ast
import difflib
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..records import LongtakeError
from .schema import SCHEMA

_COMPARE = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
}
FORM = "Write it like: status == 'ok' and num_frames >= 100 and motion_class in ('general', 'planar')"


def parse_where(text: str) -> pc.Expression:
    """A condition as an Arrow expression, for `Manifest.rows` and `export`.

    Python's comparisons (also chained, `in` and `not in` a tuple, `== None` for missing values) joined by and, or, not.

    Raises:
        LongtakeError: no such column, or anything that is no such condition; nothing is ever evaluated.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise LongtakeError(f"Cannot read the condition {text!r}. {FORM}") from error
    return _condition(tree, text)


def _condition(node: ast.expr, text: str) -> pc.Expression:
    match node:
        case ast.BoolOp(op=op, values=values):
            first, *rest = [_condition(value, text) for value in values]
            for other in rest:
                first = first & other if isinstance(op, ast.And) else first | other
            return first
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return ~_condition(operand, text)
        case ast.Name():
            return _column(node)
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            sides = [left, *comparators]
            parts = [_comparison(a, op, b, text) for a, op, b in zip(sides, ops, sides[1:], strict=False)]
            for part in parts[1:]:
                parts[0] = parts[0] & part
            return parts[0]
    raise LongtakeError(f"Cannot read {ast.unparse(node)!r} in the condition {text!r}. {FORM}")


def _comparison(left: ast.expr, op: ast.cmpop, right: ast.expr, text: str) -> pc.Expression:
    if isinstance(op, (ast.In, ast.NotIn)):
        found = _column(left).isin(_value(right, text))
        return found if isinstance(op, ast.In) else ~found
    if isinstance(right, ast.Constant) and right.value is None:
        missing = _column(left).is_null(nan_is_null=True)
        if isinstance(op, (ast.Eq, ast.Is)):
            return missing
        if isinstance(op, (ast.NotEq, ast.IsNot)):
            return ~missing
    elif type(op) in _COMPARE:
        sides = [_column(side) if isinstance(side, ast.Name) else _value(side, text) for side in (left, right)]
        if any(isinstance(side, pc.Expression) for side in sides):
            return _COMPARE[type(op)](*(s if isinstance(s, pc.Expression) else pc.scalar(s) for s in sides))
    raise LongtakeError(f"Cannot read {ast.unparse(left)} ... {ast.unparse(right)} in {text!r}. {FORM}")


def _column(node: ast.expr) -> pc.Expression:
    name = ast.unparse(node)
    if name not in SCHEMA.names:
        near = difflib.get_close_matches(name, SCHEMA.names, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise LongtakeError(f"The manifest has no column {name}.{hint} Text stands in quotes. {FORM}")
    if pa.types.is_list(SCHEMA.field(name).type):
        raise LongtakeError(f"{name} is a list in every row: conditions are on single values.")
    return pc.field(name)


def _value(node: ast.expr, text: str) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise LongtakeError(f"Cannot read {ast.unparse(node)!r} in the condition {text!r}. {FORM}") from error
