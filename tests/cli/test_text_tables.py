"""Tables and lines as a terminal gets them."""

from __future__ import annotations

import pytest

from quantcli.cli.text_tables import Table, Text, View
from quantcli.core.display import printable

FACTS = Table(("", ""), rows=[("Kind", "a model of many words")])


def marked(text: str, look: str) -> str:
    return f"<{look}:{text}>"


def shown(view: View, width: int | None = None) -> list[str]:
    return list(view.lines(width, marked))


def test_headings_stand_over_their_columns() -> None:
    table = Table(("Name", "Count"), frozenset({"Count"}), [("a", "1"), ("longer", "1,000")])
    assert shown(table) == ["<label:Name    Count>", "a           1", "longer  1,000"]


def test_facts_have_labels_and_no_heading() -> None:
    assert shown(FACTS) == ["<label:Kind>  a model of many words"]


def test_text_is_painted_line_by_line() -> None:
    assert shown(Text("a\nb", "aside")) == ["<aside:a>", "<aside:b>"]


def test_what_a_terminal_would_obey_is_escaped() -> None:
    assert printable("▁déjà 😀") == "▁déjà 😀"
    assert printable("\x1b[2J\n\t\udcff") == r"\x1b[2J\n\t\xff"
    assert shown(Text("a\x1b[2J", "aside")) == [r"<aside:a\x1b[2J>"]
    assert shown(Table(("", ""), rows=[("\x07", "a\nb")]))[0].endswith(r"a\nb")


def test_cells_and_lines_are_clipped() -> None:
    assert shown(Text("x" * 5000, "aside")) == [f"<aside:{'x' * 997}...>"]
    assert shown(Table(("Name",), rows=[("x" * 5000,)]))[1] == "x" * 997 + "..."


def test_a_terminal_folds_the_widest_column_of_text_between_words() -> None:
    assert shown(FACTS, 23) == ["<label:Kind>  a model of many", "<label:    >  words"]


def test_a_word_too_long_is_folded_and_not_cut() -> None:
    table = Table(("Name", "Bytes"), frozenset({"Bytes"}), [("x" * 30, "12345")])
    _, first, second = shown(table, 27)
    assert first == "x" * 20 + "  12345"
    assert second == "x" * 10


def test_a_terminal_too_narrow_to_fold_breaks_lines_itself() -> None:
    assert shown(FACTS, 12) == shown(FACTS)


def test_wide_and_combining_characters_keep_columns_straight() -> None:
    table = Table(("Text", "Next"), rows=[("日本", "x"), ("e\u0301", "x"), ("▁a", "x")])
    assert shown(table)[1:] == ["日本  x", "e\u0301     x", "▁a    x"]


def test_a_row_has_a_cell_for_each_column() -> None:
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        Table(("a", "b")).add_row("x")


def test_several_columns_and_headings_are_folded_between_words() -> None:
    rows = [("abc", "some words here", "1"), ("abcdef gh", "more", "22")]
    table = Table(("Name of it", "What", "N"), frozenset({"N"}), rows)
    assert shown(table, 18) == [
        "<label:Name    What     N>",
        "<label:of it>",
        "abc     some     1",
        "        words",
        "        here",
        "abcdef  more    22",
        "gh",
    ]
