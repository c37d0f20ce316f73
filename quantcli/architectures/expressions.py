"""The expression language of data files: architectures, recipes, graphs.

It is a subset of Python's expression syntax: names, constants, lists, arithmetic, comparisons, `and`/`or`/`not`,
`a if c else b`, `table.key`, and the functions of `FUNCTIONS`. An undefined name is `None`, and so is arithmetic with
`None`. So an absent hyperparameter propagates as `None`.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any, Final, Protocol

from quantcli.core.errors import ModelError, clipped, shown


class Scope(Protocol):
    """The variables of an expression: a mapping, or another object with `get`."""

    def get(self, name: str, /) -> Any:
        """The value of a name, or None where it is undefined."""


_ARITHMETIC: Final[Mapping[type[ast.operator], Callable[[Any, Any], Any]]] = MappingProxyType(
    {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
        ast.FloorDiv: operator.floordiv,
        ast.Mod: operator.mod,
    }
)

_COMPARISONS: Final[Mapping[type[ast.cmpop], Callable[[Any, Any], Any]]] = MappingProxyType(
    {
        ast.Eq: operator.eq,
        ast.NotEq: operator.ne,
        ast.Lt: operator.lt,
        ast.LtE: operator.le,
        ast.Gt: operator.gt,
        ast.GtE: operator.ge,
        ast.Is: operator.is_,
        ast.IsNot: operator.is_not,
        ast.In: lambda value, options: value in options,
        ast.NotIn: lambda value, options: value not in options,
    }
)

_LARGEST: Final = (1 << 63) - 1
"""The largest integer result of arithmetic, that of int64."""

_MOST_LAYERS: Final = 1 << 16
"""A limit on the number of layers, and so on the length of lists."""

_ORDERINGS: Final = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)


def _first(*values: Any) -> Any:
    """The first value that is not None."""
    return next((value for value in values if value is not None), None)


def _integer(value: Any) -> int | None:
    """The value truncated to an integer."""
    return None if value is None else int(value)


def _lower(value: str | None) -> str | None:
    """The string in lower case."""
    return None if value is None else str(value).lower()


def _power(base: float | None, exponent: float | None) -> float | None:
    """`base` to the power of `exponent`, as a floating-point number."""
    return None if base is None or exponent is None else math.pow(base, exponent)


def _numbers(count: int) -> list[int]:
    """The integers from 0 to `count` - 1, where `count` is a number of layers."""
    if count > _MOST_LAYERS:
        raise ValueError(f"{count} is not a valid number of layers")
    return list(range(count))


def _where_in(values: list[Any] | None, choices: list[Any], chosen: Any, other: Any) -> list[Any] | None:
    """For each value `chosen` where it is among the choices, else `other`."""
    if not isinstance(values, list | None):
        raise TypeError(f"{shown(values)} is not a list")
    return None if values is None else [chosen if value in choices else other for value in values]


def _at(values: list[Any] | None, index: int) -> Any:
    """The element at an index of a list; None where there is no list or the index is out of range."""
    if not isinstance(values, list | None):
        raise TypeError(f"{shown(values)} is not a list")
    return None if values is None or not 0 <= index < len(values) else values[index]


def _either(values: list[Any], others: list[Any]) -> list[bool]:
    """For each place of two lists of one length, whether either value is true there."""
    return [bool(value or other) for value, other in zip(values, others, strict=True)]


def _leading(values: list[Any] | None, choice: Any) -> int | None:
    """The number of values, from the first on, that are the choice."""
    if not isinstance(values, list | None):
        raise TypeError(f"{shown(values)} is not a list")
    return None if values is None else next((place for place, value in enumerate(values) if value != choice), len(values))


def _in_order(table: Mapping[str, Any] | None) -> list[Any] | None:
    """The values of a table in the order of its keys, in numerical order where all keys are numbers."""
    if table is None:
        return None
    numbered = all(str(key).isdecimal() for key in table)
    return [table[key] for key in sorted(table, key=int if numbered else str)]


def _numbered(text: str, count: int | None) -> list[str] | None:
    """The strings `text` + "0" to `text` + str(`count` - 1)."""
    return None if count is None else [f"{text}{number}" for number in _numbers(count)]


def _cycle(values: list[Any], count: int) -> list[Any]:
    """The values repeated cyclically, to a length of `count`."""
    return [values[number % len(values)] for number in _numbers(count)]


def _of_number(function: Callable[[float], float]) -> Callable[[Any], float | None]:
    return lambda value: None if value is None else function(value)


FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = MappingProxyType(
    {
        "first": _first,
        "int": _integer,
        "lower": _lower,
        "min": min,
        "max": max,
        "len": len,
        "log": _of_number(math.log),
        "sqrt": _of_number(math.sqrt),
        "power": _power,
        "range": _numbers,
        "at": _at,
        "cycle": _cycle,
        "either": _either,
        "in_order": _in_order,
        "leading": _leading,
        "numbered": _numbered,
        "where_in": _where_in,
    }
)
"""The functions an expression may call."""


@dataclass(frozen=True)
class Expression:
    """A parsed expression. Raises `ValueError` for a string that is not in the language."""

    source: str
    _body: ast.expr = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_body", _body_of(self.source))

    @classmethod
    def about(cls, source: str, facts: Set[str]) -> Expression:
        """An expression whose only variables are `facts`. Raises `ValueError` for any other string."""
        made = cls(source)
        if unknown := sorted(made.names - facts):
            raise ValueError(f"{unknown[0]!r} is not a fact; the facts are {', '.join(sorted(facts))}")
        return made

    @property
    def tree(self) -> ast.expr:
        """Its syntax tree, which must not be modified."""
        return self._body

    @property
    def names(self) -> frozenset[str]:
        """The names of its variables, without functions."""
        called = {node.func for node in ast.walk(self._body) if isinstance(node, ast.Call)}
        return frozenset(node.id for node in ast.walk(self._body) if isinstance(node, ast.Name) and node not in called)

    def evaluate(self, scope: Scope, origin: str = "config.json") -> Any:
        """The value for the variables in `scope`. `origin` is the source of these, for errors.

        Raises:
            ModelError: if it cannot be computed, as for a string where a number is needed, or a division by zero.
        """
        try:
            return _evaluate(self._body, scope)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise ModelError(f"{origin}: cannot compute {self.source!r}: {clipped(str(error))}") from error


@dataclass(frozen=True)
class Call:
    """A call such as `rope_pairs(heads)`: a function name, and expressions for its arguments."""

    name: str
    arguments: tuple[Expression, ...]

    @classmethod
    def parse(cls, source: str) -> Call:
        """Read `name` or `name(argument, ...)`. Raises `ValueError` for anything else."""
        body = _parsed(source, "a call")
        if isinstance(body, ast.Name):
            return cls(body.id, ())
        if isinstance(body, ast.Call) and isinstance(body.func, ast.Name) and not body.keywords:
            return cls(body.func.id, tuple(Expression(ast.unparse(argument)) for argument in body.args))
        raise ValueError(f"{source!r} is not a call")

    def evaluate(self, scope: Scope) -> tuple[Any, ...]:
        """The values of the arguments."""
        return tuple(argument.evaluate(scope) for argument in self.arguments)


@cache
def _body_of(source: str) -> ast.expr:
    """An expression's syntax tree, which must not be modified. It is cached, as files share most expressions."""
    body = _parsed(source, "an expression")
    _check(body, source)
    return body


def _parsed(source: str, what: str) -> ast.expr:
    try:
        return ast.parse(f"({source.strip()}\n)", mode="eval").body  # in parentheses it may have several lines
    except (SyntaxError, RecursionError, MemoryError) as error:  # the last two mean: nested too deeply
        raise ValueError(f"{source[:99]!r} is not {what}") from error


def _check(node: ast.expr, source: str) -> None:
    """Raises ValueError for a construct that `_evaluate` does not support."""
    match node:
        case ast.Constant() | ast.Name():
            return
        case ast.Attribute(value=value):
            parts = [value]
        case ast.List(elts=elements):
            parts = elements
        case ast.BinOp(left=left, right=right, op=op) if type(op) in _ARITHMETIC:
            parts = [left, right]
        case ast.UnaryOp(operand=operand, op=ast.USub() | ast.Not()):
            parts = [operand]
        case ast.BoolOp(values=values):
            parts = values
        case ast.Compare(left=left, comparators=comparators):
            parts = [left, *comparators]
        case ast.IfExp(test=test, body=body, orelse=orelse):
            parts = [test, body, orelse]
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            parts = arguments
        case _:
            raise ValueError(f"{ast.unparse(node)!r} in {source!r} is not part of the expression language")
    for part in parts:
        _check(part, source)


def _evaluate(node: Any, scope: Scope) -> Any:
    return _EVALUATORS[type(node)](node, scope)


def _attribute(node: ast.Attribute, scope: Scope) -> Any:
    table = _evaluate(node.value, scope)
    return table.get(node.attr) if isinstance(table, Mapping) else None


def _unary(node: ast.UnaryOp, scope: Scope) -> Any:
    operand = _evaluate(node.operand, scope)
    return not operand if isinstance(node.op, ast.Not) else _arithmetic(ast.Sub, 0, operand)


def _arithmetic(op: type[ast.operator], left: Any, right: Any) -> Any:
    if left is None or right is None:
        return None
    for value in (left, right):
        if not isinstance(value, int | float):
            raise TypeError(f"{shown(value)} is not a number")
    result = _ARITHMETIC[op](left, right)
    if isinstance(result, int) and abs(result) > _LARGEST:
        raise OverflowError("the result is too large for a size")
    return result


def _junction(node: ast.BoolOp, scope: Scope) -> Any:
    conjunction = isinstance(node.op, ast.And)
    result: Any = conjunction
    for value in node.values:
        result = _evaluate(value, scope)
        if bool(result) is not conjunction:
            break
    return result


def _comparison(node: ast.Compare, scope: Scope) -> bool:
    left = _evaluate(node.left, scope)
    for op, comparator in zip(node.ops, node.comparators, strict=True):
        right = _evaluate(comparator, scope)
        if isinstance(op, _ORDERINGS) and (left is None or right is None):
            return False
        if not _COMPARISONS[type(op)](left, right):
            return False
        left = right
    return True


_EVALUATORS: Final[Mapping[type[ast.expr], Callable[[Any, Scope], Any]]] = MappingProxyType(
    {
        ast.Constant: lambda node, scope: node.value,
        ast.Name: lambda node, scope: scope.get(node.id),
        ast.Attribute: _attribute,
        ast.List: lambda node, scope: [_evaluate(element, scope) for element in node.elts],
        ast.BinOp: lambda node, scope: _arithmetic(
            type(node.op), _evaluate(node.left, scope), _evaluate(node.right, scope)
        ),
        ast.UnaryOp: _unary,
        ast.BoolOp: _junction,
        ast.Compare: _comparison,
        ast.IfExp: lambda node, scope: _evaluate(node.body if _evaluate(node.test, scope) else node.orelse, scope),
        ast.Call: lambda node, scope: FUNCTIONS[node.func.id](*(_evaluate(argument, scope) for argument in node.args)),
    }
)
