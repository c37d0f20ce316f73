"""What the library warns of, as the command line shows it."""

from __future__ import annotations

import click
import pytest
from command_line import run_command

from quantcli.cli import main as command_line
from quantcli.core.errors import ModelError, QuantcliWarning, warn


def run_body(monkeypatch, capsys, body) -> tuple[int, str, str]:
    command = click.command("types")(body)
    monkeypatch.setattr(command_line.CommandGroup, "get_command", lambda *_: command)
    return run_command(capsys, "types")


def test_a_warning_is_one_line_and_said_once(monkeypatch, capsys) -> None:
    def body() -> None:
        for _ in range(2):
            warn("model.gguf: names no pre-tokenizer")

    assert run_body(monkeypatch, capsys, body) == (0, "", "warning: model.gguf: names no pre-tokenizer")


def test_texts_from_files_reach_the_terminal_escaped(monkeypatch, capsys) -> None:
    def body() -> None:
        warn("a\x1b[2Jb")
        raise ModelError("c\x1b[2Jd\ne", hint="f\x07")

    lines = ["warning: a\\x1b[2Jb", "error: c\\x1b[2Jd\\ne", "hint: f\\x07"]
    assert run_body(monkeypatch, capsys, body) == (1, "", "\n".join(lines))


def test_a_program_sees_it_as_a_python_warning() -> None:
    with pytest.warns(QuantcliWarning, match="no pre-tokenizer"):
        warn("no pre-tokenizer")
