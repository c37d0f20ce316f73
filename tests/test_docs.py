"""docs/: the command reference is that of the commands, and every page is in the site."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import yaml

DOCS = Path(__file__).parents[1] / "docs"


def test_the_command_reference_is_current() -> None:
    found = importlib.util.spec_from_file_location("make_commands", DOCS / "make_commands.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    written = (DOCS / "commands.md").read_text("utf-8")
    assert written == module.reference() + "\n", "python docs/make_commands.py writes it"


def test_every_page_is_in_the_navigation() -> None:
    site = yaml.safe_load((DOCS.parent / "mkdocs.yml").read_text("utf-8"))
    listed = {page for entry in site["nav"] for page in entry.values()}
    assert listed == {path.name for path in DOCS.glob("*.md")}


def test_commands_that_the_overview_names_exist() -> None:
    from quantcli.cli.commands import SUMMARIES

    named = set(re.findall(r"quantize ([a-z]+)\b", (DOCS / "index.md").read_text("utf-8")))
    assert named <= SUMMARIES.keys()
