"""SECURITY.md: each of its attacks has a test, of which it gives the name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = re.findall(r"^\| (.+?) \| .+? \| (tests/\S+)::(\w+) \|$", (ROOT / "SECURITY.md").read_text("utf-8"), re.MULTILINE)


def test_the_table_is_read() -> None:
    assert len(ROWS) > 25


@pytest.mark.parametrize(("attack", "path", "name"), ROWS, ids=[row[0] for row in ROWS])
def test_there_is_a_test_of_each_attack(attack: str, path: str, name: str) -> None:
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text("utf-8"), re.MULTILINE), attack
