"""The language of the tests in `recipes.toml`: facts, constants, comparisons, whole-number arithmetic, `and`, `or`, `not`.

The syntax is Python's; nothing else of Python is reachable from it.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any, Final

Condition = Callable[[Any], Any]
"""Evaluates an expression on an object whose attributes are the facts."""

_OPERATORS: Final[dict[type[ast.AST], Callable[[Any, Any], Any]]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda item, items: item in items,
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def compile_condition(text: str, facts: Set[str]) -> Condition:
    """Compile an expression that may speak of `facts`, once, for evaluation on many tensors.

    Raises:
        ValueError: if the text is no expression of the language or names something that is not a fact.
    """
    try:
        return _compile(ast.parse(f"({text.strip()})", mode="eval").body, facts)
    except SyntaxError as error:
        raise ValueError(f"not an expression: {text!r} ({error.msg})") from None


def _compile(node: ast.expr, facts: Set[str]) -> Condition:
    match node:
        case ast.Constant(value):
            return lambda _: value
        case ast.Name(name) if name in facts:
            return operator.attrgetter(name)
        case ast.Name(name):
            raise ValueError(f"{name!r} is not a fact; the facts are {', '.join(sorted(facts))}")
        case ast.List(items):
            return _connect(list, items, facts)
        case ast.UnaryOp(ast.Not(), operand):
            return _connect(lambda values: not any(values), [operand], facts)
        case ast.BoolOp(connective, operands):
            return _connect(all if isinstance(connective, ast.And) else any, operands, facts)
        case ast.BinOp(left, symbol, right) | ast.Compare(left, [symbol], [right]) if type(symbol) in _OPERATORS:
            function = _OPERATORS[type(symbol)]
            return _connect(lambda values: function(*values), [left, right], facts)
        case _:
            raise ValueError(f"not part of the language of conditions: {ast.unparse(node)!r}")


def _connect(function: Callable[[Iterator[Any]], Any], operands: Sequence[ast.expr], facts: Set[str]) -> Condition:
    """Apply `function` to the values of the operands, each computed when `function` asks for it."""
    parts = [_compile(operand, facts) for operand in operands]
    return lambda it: function(part(it) for part in parts)
