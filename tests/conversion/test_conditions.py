from __future__ import annotations

from types import SimpleNamespace

import pytest

from quantcli.conversion.conditions import compile_condition

FACTS = SimpleNamespace(position=5, total=17, name="llama", flag=False)
NAMES = {"position", "total", "name", "flag"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("position < total // 3", False),
        ("position <= total // 3", True),
        ("7 * total // 8", 14),
        ("(position - total // 8) % 3 == 0", True),
        ("position + 1 != 6", False),
        ('name in ["qwen2", "llama"] and not flag', True),
        ("flag or position > 4 and position >= 6", False),
        ("\n    flag\n    or position == 5\n", True),
    ],
)
def test_values(text: str, value: object) -> None:
    assert compile_condition(text, NAMES)(FACTS) == value


def test_what_need_not_be_known_is_not_asked() -> None:
    condition = compile_condition("flag and position == 1 // 0", NAMES)
    assert condition(FACTS) is False


@pytest.mark.parametrize(
    "text",
    [
        "position.real",
        "len(name)",
        "name[0]",
        "lambda: 1",
        "position if flag else total",
        "1 < position < 3",
        "-position",
        "position ** 2",
        "total / 2",
        "other == 1",
        "position <",
        "",
        "flag = 1",
    ],
)
def test_nothing_else_is_part_of_the_language(text: str) -> None:
    with pytest.raises(ValueError, match=r"language|expression|not a fact"):
        compile_condition(text, NAMES)
