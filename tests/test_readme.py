"""The console blocks of README.md: outputs are those of the commands, and options of the others exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from quantcli.cli.commands import SUMMARIES
from quantcli.cli.main import cli

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```console\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
WIDTH = 128
"""The width at which README.md shows text."""

TIMES = re.compile(r"\b\d+\.\d s\b")
COMPILED = re.compile(r"compiled \d+ kernels? in .*")
"""What depends on the machine: the first use compiles, later ones do not."""


def commands(block: str) -> list[tuple[str, list[str]]]:
    """The commands of a block, each with the lines that it shows."""
    parts = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    return [(first, rest) for first, *rest in (part.rstrip("\n").split("\n") for part in parts)]


SHOWN = [pair for block in BLOCKS for pair in commands(block) if any(pair[1])]
OTHERS = [line for block in BLOCKS for line, output in commands(block) if not any(output)]


def test_there_are_outputs() -> None:
    assert len(SHOWN) > 3
    assert len(OTHERS) > 5


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the examples, where the commands are run one after another."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


def output(line: str, place: Path) -> list[str]:
    """What a command prints, in lines."""
    words = [sys.executable, "-m", "quantcli", *shlex.split(line)[1:]]
    environment = {**os.environ, "COLUMNS": str(WIDTH)}
    done = subprocess.run(words, cwd=place, env=environment, check=True, capture_output=True, text=True, encoding="utf-8")
    return comparable(done.stdout.splitlines())


def comparable(lines: list[str]) -> list[str]:
    """Lines without times, wrapped as README.md wraps text."""
    kept = [TIMES.sub("TIME", line.rstrip()) for line in lines if not COMPILED.fullmatch(line)]
    return [part for line in kept for part in textwrap.wrap(line, WIDTH) or [""]]


@pytest.mark.parametrize(("line", "shown"), SHOWN, ids=[line for line, _ in SHOWN])
def test_outputs_are_those_of_the_commands(line: str, shown: list[str], place: Path) -> None:
    """A line of three dots stands for any lines."""
    found = output(line, place)
    while shown and not shown[-1]:
        shown = shown[:-1]
    expected = comparable(shown)
    at = 0
    for number, wanted in enumerate(expected):
        if wanted == "...":
            continue
        places = [at] if number == 0 or expected[number - 1] != "..." else range(at, len(found))
        at = next((place for place in places if place < len(found) and found[place] == wanted), -1) + 1
        assert at > 0, f"{line}: {wanted!r} is not printed:\n" + "\n".join(found)
    assert expected[-1] == "..." or at == len(found)


@pytest.mark.parametrize("line", OTHERS)
def test_other_commands_have_these_options(line: str) -> None:
    words = shlex.split(line)[1:]
    name = words[0] if words[0] in SUMMARIES else "convert"
    command = cli.get_command(None, name)  # type: ignore[arg-type] - of no context
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known
