"""`quantize architectures` lists what the data files declare."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from terminal import on_terminal

from quantcli.architectures.loader import architectures
from quantcli.cli.commands.architectures import command

SUPPORTED = Path(__file__).parents[2] / "docs" / "supported.md"


def test_every_architecture_is_listed() -> None:
    listed = json.loads(CliRunner().invoke(command, ["--json"]).stdout)
    assert {entry["name"] for entry in listed} == {architecture.name for architecture in architectures()}
    llama = next(entry for entry in listed if entry["name"] == "llama")
    assert "MistralForCausalLM" in llama["classes"]
    page = CliRunner().invoke(command).stdout
    assert all(architecture.title in page for architecture in architectures())


def test_the_documentation_names_every_architecture() -> None:
    text = SUPPORTED.read_text(encoding="utf-8")
    missing = [architecture.title for architecture in architectures() if architecture.title not in text]
    assert not missing


@pytest.mark.parametrize("command_name", ["architectures", "types"])
def test_a_terminal_of_80_columns_breaks_no_word(command_name: str) -> None:
    pytest.importorskip("pty", reason="there are no such terminals here")
    wide, narrow = (on_terminal([command_name], columns)[1] for columns in (500, 80))
    assert max(map(len, narrow.splitlines())) <= 80
    assert sorted(re.findall(r"\S+", wide)) == sorted(re.findall(r"\S+", narrow))
