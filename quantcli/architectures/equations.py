"""Solve expressions of architecture files for the keys of config.json: which keys give an expression a value.

It is `expressions.evaluate` backwards, as far as that goes: a name is set, `first` is given the key that the configuration
class has, arithmetic with one unknown is inverted, a condition is made true or false.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from types import MappingProxyType
from typing import Any, Final

from quantcli.architectures.expressions import Expression
from quantcli.core.errors import ModelError

Keys = dict[str, Any]
"""Keys of config.json with their values; tables are nested."""


def _divided(product: float, factor: float) -> float | None:
    """An integer where both are integers and the factor divides the product."""
    if not factor:
        return None
    if isinstance(product, int) and isinstance(factor, int) and not product % factor:
        return product // factor
    return product / factor


_LEFT: Final[Mapping[type[ast.operator], Callable[[Any, Any], Any]]] = MappingProxyType(
    {
        ast.Add: operator.sub,
        ast.Sub: operator.add,
        ast.Mult: _divided,
        ast.Div: operator.mul,
        ast.FloorDiv: operator.mul,
    }
)
"""Operator -> the left operand from the result and the right operand."""

_RIGHT: Final[Mapping[type[ast.operator], Callable[[Any, Any], Any]]] = MappingProxyType(
    {
        ast.Add: operator.sub,
        ast.Sub: lambda result, left: left - result,
        ast.Mult: _divided,
        ast.Div: lambda result, left: _divided(left, result),
    }
)
"""Operator -> the right operand from the result and the left operand."""


def _is_call(node: ast.Call, name: str) -> bool:
    return isinstance(node.func, ast.Name) and node.func.id == name


@dataclass(frozen=True)
class Solver:
    """Solves expressions over the `[values]` of an architecture.

    values   name -> its expression, in the order in which they are computed
    scope    what is known: the variables of expressions
    fixed    the keys that have been found, which keep their values
    rank     of the keys of an alternative of `first`: the lowest is taken
    simple   solve no arithmetic, and no alternatives to it: other operands may not be known yet
    """

    values: Mapping[str, Expression]
    scope: Mapping[str, Any]
    fixed: Mapping[str, Any]
    rank: Callable[[Keys], tuple[Any, ...]]
    simple: bool = False

    def solve(self, expression: Expression, value: Any) -> Keys | None:
        """Keys that give the expression this value; None where none are found."""
        return self._solve(expression.tree, value, len(self.values))

    def _solve(self, node: Any, value: Any, level: int) -> Keys | None:
        method = _METHODS.get(type(node))
        return None if method is None else method(self, node, value, level)

    def _known(self, node: ast.expr) -> Any:
        try:
            return Expression(ast.unparse(node)).evaluate(self.scope)
        except (ModelError, ValueError):
            return None

    def _name(self, node: ast.Name, value: Any, level: int) -> Keys | None:
        """In the definition of a value, names are those of the values above it and of config.json."""
        place = list(self.values).index(node.id) if node.id in self.values else level
        if place < level:
            return self._solve(self.values[node.id].tree, value, place)
        return {node.id: value}

    def _is_value(self, node: ast.expr, level: int) -> bool:
        """Whether an alternative is computed from other values, so that a key of its own is better."""
        if not isinstance(node, ast.Name):
            return True
        return node.id in self.values and list(self.values).index(node.id) < level

    def _attribute(self, node: ast.Attribute, value: Any, level: int) -> Keys | None:
        return self._solve(node.value, {node.attr: value}, level)

    def _constant(self, node: ast.Constant, value: Any, level: int) -> Keys | None:
        return {} if node.value == value else None

    def _arithmetic(self, node: ast.BinOp, value: Any, level: int) -> Keys | None:
        if self.simple or isinstance(value, bool) or not isinstance(value, int | float):
            return None
        for unknown, other, inverses in ((node.left, node.right, _LEFT), (node.right, node.left, _RIGHT)):
            known = self._known(other)
            inverse = inverses.get(type(node.op))
            if inverse is None or not isinstance(known, int | float):
                continue
            wanted = inverse(value, known)
            found = None if wanted is None else self._solve(unknown, wanted, level)
            if found is not None and self._fits(found):
                return found
        return None

    def _fits(self, keys: Keys) -> bool:
        """Whether keys do not contradict those that have been found."""
        return all(isinstance(value, dict) or self.fixed.get(key, value) == value for key, value in keys.items())

    def _unary(self, node: ast.UnaryOp, value: Any, level: int) -> Keys | None:
        return self._solve(node.operand, not value, level) if isinstance(node.op, ast.Not) else None

    def _junction(self, node: ast.BoolOp, value: Any, level: int) -> Keys | None:
        everything = isinstance(node.op, ast.And) == bool(value)
        found: Keys = {}
        for part in node.values:
            keys = {} if everything and bool(self._known(part)) == bool(value) else self._solve(part, value, level)
            if everything and keys is not None:
                found |= keys
            elif everything:
                return None
            elif keys is not None:
                return keys
        return found if everything else None

    def _comparison(self, node: ast.Compare, value: Any, level: int) -> Keys | None:
        if len(node.ops) != 1 or not isinstance(node.comparators[0], ast.Constant | ast.List):
            return None
        other, kind, known = self._known(node.comparators[0]), type(node.ops[0]), self._known(node.left)
        equal = {ast.Eq: True, ast.Is: True, ast.NotEq: False, ast.IsNot: False}.get(kind)
        if equal is None:
            return self._solve(node.left, other[0], level) if kind is ast.In and value and other else None
        if equal == bool(value):
            return self._solve(node.left, other, level)
        if isinstance(other, bool):
            return self._solve(node.left, not other, level)
        return {} if known is not None and known != other else None

    def _choice(self, node: ast.IfExp, value: Any, level: int) -> Keys | None:
        """The branch that sets fewest new keys, and of two such the one whose condition holds already."""
        found: list[tuple[int, bool, int, Keys]] = []
        for place, (way, holds) in enumerate(((node.body, True), (node.orelse, False))):
            given = bool(self._known(node.test)) == holds
            keys, test = self._solve(way, value, level), {} if given else self._solve(node.test, holds, level)
            if test is None and keys and self._holds(node.test, keys) == holds:
                test = {}
            if keys is not None and test is not None and self._fits(test) and self._fits(keys):
                both = test | keys
                found.append((len(both.keys() - self.fixed.keys()), not given, place, both))
        return min(found, key=lambda entry: entry[:3])[-1] if found else None

    def _holds(self, node: ast.expr, keys: Keys) -> bool:
        """Whether a condition is true with more keys."""
        return bool(replace(self, scope={**self.scope, **keys})._known(node))

    def _list(self, node: ast.List, value: Any, level: int) -> Keys | None:
        """A list of the elements of another: `[at(x, 0), at(x, 1) ...]`."""
        calls = [part for part in ast.walk(node) if isinstance(part, ast.Call) and _is_call(part, "at")]
        if not calls or not isinstance(value, list) or len(calls) != len(node.elts):
            return None
        return self._solve(calls[0].args[0], value, level)

    def _call(self, node: ast.Call, value: Any, level: int) -> Keys | None:
        method = _FUNCTIONS.get(node.func.id) if isinstance(node.func, ast.Name) else None
        return None if method is None else method(self, node.args, value, level)

    def _first(self, arguments: Sequence[ast.expr], value: Any, level: int) -> Keys | None:
        if self.simple and any(isinstance(part, ast.BinOp) for part in arguments):
            return None
        ways = [self._solve(argument, value, level) for argument in arguments]
        if self._is_fallback(arguments, value):
            return {}
        if value is None:  # all of them must be absent
            return {key: None for way in ways if way is not None for key in way}
        direct = [isinstance(argument, ast.Attribute) or not self._is_value(argument, level) for argument in arguments]
        # A key that is set hides all later ones.
        open_ = takewhile(lambda place: ways[place] is None or self._fits(ways[place] or {}), range(len(ways)))
        places = [place for place in open_ if ways[place]]
        ranks = {place: self.rank(ways[place] or {}) for place in places}
        found = [(rank[0], not direct[place], rank[1:], place) for place, rank in ranks.items()]
        return ways[min(found)[-1]] if found else next((way for way in ways if way == {}), None)

    def _is_fallback(self, arguments: Sequence[ast.expr], value: Any) -> bool:
        """Whether the value is the constant for the case that no key is set, which is so."""
        *others, last = arguments
        same = isinstance(last, ast.Constant) and value is not None and last.value == value
        return same and all(self._known(argument) is None for argument in others)

    def _same(self, arguments: Sequence[ast.expr], value: Any, level: int) -> Keys | None:
        return self._solve(arguments[0], value, level)

    def _in_order(self, arguments: Sequence[ast.expr], values: Any, level: int) -> Keys | None:
        if not isinstance(values, list):
            return None
        return self._solve(arguments[0], {str(place): value for place, value in enumerate(values)}, level)

    def _power(self, arguments: Sequence[ast.expr], value: Any, level: int) -> Keys | None:
        exponent = self._known(arguments[1])
        if not exponent or not isinstance(value, float):
            return None
        return self._solve(arguments[0], math.pow(value, 1 / exponent), level)

    def _kinds(self, arguments: Sequence[ast.expr], values: Any, level: int) -> Keys | None:
        """The kinds of layers, for a list that has one value for layers of a kind and another for the rest."""
        if not isinstance(values, list):
            return None
        kinds, choices, chosen, other = arguments
        first, rest = self._known(chosen), [value for value in values if value != self._known(chosen)]
        if first is None or len(set(rest)) > 1:
            return None
        named = self._known(choices)
        if not named:
            return None
        usual = next(name for name in ("full_attention", "sliding_attention") if name not in named)
        found = self._solve(kinds, [named[0] if value == first else usual for value in values], level)
        if found is None or not rest:
            return found
        return found | (self._solve(other, rest[0], level) or {})


_METHODS: Final[Mapping[type[ast.expr], Callable[[Solver, Any, Any, int], Keys | None]]] = MappingProxyType(
    {
        ast.Name: Solver._name,
        ast.Attribute: Solver._attribute,
        ast.Constant: Solver._constant,
        ast.BinOp: Solver._arithmetic,
        ast.UnaryOp: Solver._unary,
        ast.BoolOp: Solver._junction,
        ast.Compare: Solver._comparison,
        ast.IfExp: Solver._choice,
        ast.List: Solver._list,
        ast.Call: Solver._call,
    }
)

_FUNCTIONS: Final[Mapping[str, Callable[[Solver, Sequence[ast.expr], Any, int], Keys | None]]] = MappingProxyType(
    {
        "first": Solver._first,
        "int": Solver._same,
        "lower": Solver._same,
        "in_order": Solver._in_order,
        "power": Solver._power,
        "where_in": Solver._kinds,
    }
)
"""The functions that can be solved for an argument."""
