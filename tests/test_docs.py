"""docs/: the command reference is that of the commands, and every page is in the site."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

DOCS = Path(__file__).parents[1] / "docs"


def test_the_command_reference_is_current() -> None:
    """In a process of its own: click keeps the help of commands that other tests have called."""
    code = f"import runpy; print(runpy.run_path({str(DOCS / 'make_commands.py')!r})['reference']())"
    made = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, encoding="utf-8").stdout
    assert (DOCS / "commands.md").read_text("utf-8") == made, "python docs/make_commands.py writes it"


def test_every_page_is_in_the_navigation() -> None:
    site = yaml.safe_load((DOCS.parent / "mkdocs.yml").read_text("utf-8"))
    listed = {page for entry in site["nav"] for page in entry.values()}
    assert listed == {path.name for path in DOCS.glob("*.md")}


def test_commands_that_the_overview_names_exist() -> None:
    from quantcli.cli.commands import SUMMARIES

    named = set(re.findall(r"quantize ([a-z]+)\b", (DOCS / "index.md").read_text("utf-8")))
    assert named <= SUMMARIES.keys()
