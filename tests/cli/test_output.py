"""How numbers and foreign texts are shown."""

from __future__ import annotations

import io
import json
import sys

import pytest

from quantcli.cli.output import columns, heading, print_json, say, show
from quantcli.core.display import binary_size, decimal_count


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.00 KiB"),
        (1024**2 - 1, "1.00 MiB"),
        (4_920_000_000, "4.58 GiB"),
        (5 * 1024**5, "5120.00 TiB"),
    ],
)
def test_bytes_in_the_unit_that_fits(count: int, text: str) -> None:
    assert binary_size(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (1000, "1.00 K"), (999_999, "1.00 M"), (8_030_261_248, "8.03 B")]
)
def test_weights_in_the_unit_that_fits(count: int, text: str) -> None:
    assert decimal_count(count) == text


def test_a_message_is_one_line_of_bounded_length(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\x1b[2J\nb")
    say(f"model.json: {'x' * 5000} is too long", err=True)
    assert capsys.readouterr() == ("a\\x1b[2J\\nb\n", f"model.json: {'x' * 988} ... {'x' * 988} is too long\n")


def test_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"text": "é", "numbers": [1, None]})
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out) == {"text": "é", "numbers": [1, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_json({"x": float("nan")})


def test_a_pipe_gets_plain_lines_as_wide_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    table = columns("Name", "Count", right=("Count",))
    table.add_row("x" * 300, "[red]1[/red]")
    table.add_row("y", ":smile:")
    show(table)
    assert capsys.readouterr().out == (f"{'Name':300}         Count\n{'x' * 300}  [red]1[/red]\n{'y':300}       :smile:\n")


def test_an_output_that_cannot_show_a_character_gets_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    show(heading("▁a"))
    sys.stdout.flush()
    assert raw.getvalue() == b"\\u2581a\n"
