"""Lists and counts in messages."""

from __future__ import annotations

from quantcli.core.listing import counted, listed


def test_a_list_ends_with_the_number_of_the_others() -> None:
    assert listed(["a", "b", "c"], most=2) == "a, b and 1 more"


def test_one_is_singular() -> None:
    assert [counted(count, "chunk") for count in (0, 1, 2, 1000)] == ["0 chunks", "1 chunk", "2 chunks", "1,000 chunks"]
