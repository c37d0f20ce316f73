"""`quantize architectures` lists what the data files declare."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from quantcli.architectures.loader import architectures
from quantcli.cli.commands.architectures import command

README = Path(__file__).parents[2] / "README.md"


def test_every_architecture_is_listed() -> None:
    listed = json.loads(CliRunner().invoke(command, ["--json"]).stdout)
    assert {entry["name"] for entry in listed} == {architecture.name for architecture in architectures()}
    llama = next(entry for entry in listed if entry["name"] == "llama")
    assert "MistralForCausalLM" in llama["classes"]
    page = CliRunner().invoke(command).stdout
    assert all(architecture.title in page for architecture in architectures())


def test_the_readme_names_every_architecture() -> None:
    text = README.read_text(encoding="utf-8")
    missing = [architecture.title for architecture in architectures() if architecture.title not in text]
    assert not missing
