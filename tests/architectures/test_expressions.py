from __future__ import annotations

import pytest

from quantcli.architectures.expressions import Call, Expression
from quantcli.core.errors import ModelError

SCOPE = {"hidden": 64, "heads": 4, "rope": {"factor": 2.0, "kind": "YARN", "inner": {"base": 10.0}}, "flag": False}
SCOPE |= {"labels": {"10": "k", "0": "a", "2": "c"}, "words": {"z": "k", "10": "a"}}


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("hidden // heads", 16),
        ("4 * hidden + 1 - heads % 3", 256),
        ("-(hidden // -48)", 2),
        ("hidden / 128", 0.5),
        ("int(0.4 * hidden)", 25),
        ("first(nothing, flag, heads)", False),
        ("first(nothing, also_nothing)", None),
        ("rope.factor", 2.0),
        ("rope.inner.base", 10.0),
        ("rope.absent.base", None),
        ("heads.factor", None),
        ("lower(rope.kind) == 'yarn' and rope.factor is not None", True),
        ("heads in [2, 4] and hidden not in [1]", True),
        ("hidden if flag else heads", 4),
        ("not flag or nothing", True),
        ("4 * nothing", None),
        ("-nothing", None),
        ("int(nothing)", None),
        ("nothing > 3", False),
        ("1 < heads <= 4", True),
        ("max(hidden, 100) - min(heads, 9) + len([1, 2])", 98),
        ("sqrt(hidden)", 8.0),
        ("log(1 / rope.factor) + log(rope.factor)", 0.0),
        ("sqrt(log(nothing))", None),
        ("power(hidden, 1 / 2)", 8.0),
        ("power(nothing, 2)", None),
        ("range(heads)", [0, 1, 2, 3]),
        ("cycle([True, False, False], heads)", [True, False, False, True]),
        ("where_in(range(heads), [1, 3], 'full', 'conv')", ["conv", "full", "conv", "full"]),
        ("at(['conv', 'full'], 1)", "full"),
        ("at(['conv', 'full'], heads)", None),
        ("at(nothing, 0)", None),
        ("where_in(nothing, ['full'], 1, 0)", None),
        ("in_order(labels)", ["a", "c", "k"]),
        ("in_order(words)", ["a", "k"]),
        ("in_order(nothing)", None),
        ("either([True, False, False], [0, 1, 0])", [True, True, False]),
        ("leading(['a', 'a', 'b', 'a'], 'a')", 2),
        ("leading(['a', 'a'], 'a')", 2),
        ("leading(nothing, 'a')", None),
        ("numbered('LABEL_', 2)", ["LABEL_0", "LABEL_1"]),
        ("numbered('LABEL_', nothing)", None),
        ("7 * hidden // 8", 56),
        ("\n    flag\n    or heads == 4\n", True),
    ],
)
def test_values(source, value):
    found = Expression(source).evaluate(SCOPE)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "source",
    ["", "a b", "open('x')", "__import__('os')", "a[0]", "lambda: 1", "[x for x in a]", "a ** b", "f'{a}'", "a.b()",
     "(a := 1)", "{1: 2}", "first(*a)", "first(a=1)", "a @ b", "a << 9999999"],
)  # fmt: skip
def test_what_is_not_in_the_language_is_refused_when_read(source):
    with pytest.raises(ValueError, match=r"not an expression|not part of the expression language"):
        Expression(source)


@pytest.mark.parametrize(
    ("source", "what"),
    [("hidden // (heads - 4)", "zero"), ("name * 3", "not a number"), ("int(name)", "invalid literal"),
     ("heads < name", "not supported"), ("3 in heads", "not iterable"), ("int(1e999)", "infinity"),
     ("cycle([], heads)", "zero"), ("range(hidden * 65536)", "not a valid number of layers"),
     ("where_in(hidden, [], 1, 0)", "64 is not a list"), ("at(name, 0)", "is not a list"), ("power(0, -1)", "domain"),
     ("leading(name, 0)", "is not a list"), ("either([True], [True, False])", "zip")],
)  # fmt: skip
def test_values_that_cannot_be_computed_with(source, what):
    with pytest.raises(ModelError, match=rf"config.json: cannot compute .*{what}"):
        Expression(source).evaluate({**SCOPE, "name": "sixty-four"})


def test_calls():
    assert Call.parse("transpose") == Call("transpose", ())
    call = Call.parse("rearrange_rows([heads, 3, -1], [1, 0, 2])")
    assert call.name == "rearrange_rows"
    assert call.evaluate(SCOPE) == ([4, 3, -1], [1, 0, 2])
    for source in ("1", "a.b(1)", "f(x=1)", "f(", "f(open(1))"):
        with pytest.raises(ValueError, match=r"not a call|not part of"):
            Call.parse(source)


class Facts:
    """Facts that are found out when they are asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def get(self, name: str, /) -> int:
        self.asked.append(name)
        return {"position": 5, "total": 17}[name]


def test_what_need_not_be_known_is_not_asked():
    facts = Facts()
    assert Expression("position == 5 or total == 1 // 0").evaluate(facts) is True
    assert facts.asked == ["position"]


def test_the_names_that_an_expression_asks_for():
    assert Expression("first(max, rope.factor) + len([hidden])").names == {"max", "rope", "hidden"}


def test_an_expression_about_facts_names_nothing_else():
    assert Expression.about("position <= total // 3", {"position", "total"}).evaluate(Facts()) is True
    with pytest.raises(ValueError, match="'other' is not a fact; the facts are position, total"):
        Expression.about("other == position", {"position", "total"})
    for source in ("position <", "", "position = 1", "position ** 2", "lambda: 1"):
        with pytest.raises(ValueError, match="expression"):
            Expression.about(source, {"position", "total"})
