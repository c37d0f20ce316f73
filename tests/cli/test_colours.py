"""Colours: on terminals that have them, and nowhere they are not wanted."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import suppress

import pytest

from quantcli.cli.output import has_colours
from quantcli.conversion.convert import convert

pty = pytest.importorskip("pty", reason="there are no such terminals here")

MAIN = "from quantcli.cli.main import main; main()"
VARIABLES = ("NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TERM")
CASES = [
    ({"TERM": "xterm"}, True),
    ({"TERM": "xterm", "NO_COLOR": "1"}, False),
    ({"TERM": "xterm", "NO_COLOR": "0"}, False),
    ({"TERM": "xterm", "NO_COLOR": ""}, True),
    ({"TERM": "dumb"}, False),
    ({}, True),
    ({"TERM": "xterm", "CLICOLOR": "0"}, False),
    ({"TERM": "dumb", "CLICOLOR_FORCE": "1"}, True),
    ({"TERM": "dumb", "CLICOLOR_FORCE": "0"}, False),
    ({"TERM": "xterm", "CLICOLOR_FORCE": "1", "NO_COLOR": "1"}, False),
]


@pytest.fixture(scope="module")
def stories(golden, tmp_path_factory):
    path = tmp_path_factory.mktemp("colours") / "stories.gguf"
    convert(golden / "stories260K", "F32", path)
    return path


def environment(variables: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables


def on_terminal(words: list[str], variables: dict[str, str]) -> bytes:
    """What a command writes to a terminal."""
    mine, inner = pty.openpty()
    command = [sys.executable, "-c", MAIN, *map(str, words)]
    with subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, env=environment(variables)) as process:
        os.close(inner)
        written = b""
        with suppress(OSError):
            while part := os.read(mine, 65536):
                written += part
    os.close(mine)
    assert process.returncode == 0, written
    return written


@pytest.mark.parametrize(("variables", "coloured"), CASES)
def test_one_place_decides(monkeypatch, variables, coloured):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    assert has_colours(stream) == (coloured and "CLICOLOR_FORCE" in variables)
    stream.isatty = lambda: True
    assert has_colours(stream) == coloured


@pytest.mark.parametrize(("variables", "coloured"), CASES[:5])
@pytest.mark.parametrize("command", ["run", "inspect", "embed", "types"])
def test_commands_write_escapes_only_for_colours(stories, command, variables, coloured):
    words = {
        "run": ["run", stories, "-p", "Once", "-n", "2", "--temp", "0"],
        "inspect": ["inspect", stories],
        "embed": ["embed", stories, "-p", "Once"],
        "types": ["types"],
    }
    assert (b"\x1b[" in on_terminal(words[command], variables)) == coloured


def test_colours_can_be_asked_for_in_a_pipe(stories):
    for variables, coloured in (({"CLICOLOR_FORCE": "1"}, True), ({}, False)):
        words = [sys.executable, "-c", MAIN, "inspect", str(stories)]
        done = subprocess.run(words, env=environment(variables), capture_output=True, check=True)
        assert (b"\x1b[" in done.stdout) == coloured
