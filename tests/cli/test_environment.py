"""Variables of numba in the environment: they work, or a line names them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantcli.cli.environment import without_unusable
from quantcli.cli.main import report
from quantcli.conversion.convert import convert

ROOT = Path(__file__).parents[2]

BAD = {
    "NUMBA_NUM_THREADS": ["0", "-2", "abc", "", "100000", "1.5", "9" * 5000],
    "NUMBA_DISABLE_JIT": ["1", "yes", ""],
    "NUMBA_OPT": ["9", "fast", ""],
    "NUMBA_CPU_NAME": ["generic", "foo"],
    "NUMBA_CPU_FEATURES": ["+foo"],
    "NUMBA_CACHE_LOCATOR_CLASSES": ["Foo"],
}
GOOD = {
    "NUMBA_NUM_THREADS": "2", "NUMBA_DISABLE_JIT": "0", "NUMBA_OPT": "max", "NUMBA_THREADING_LAYER": "foo",
    "NUMBA_CACHE_DIR": "/proc/nowhere", "NUMBA_BOUNDSCHECK": "1",
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_what_would_break_kernels_is_taken_out_and_named(name, value):
    environment = {**GOOD, name: value}
    (line,) = without_unusable(environment)
    assert name in line
    assert len(line) < 300
    assert name not in environment


def test_what_works_is_left_alone():
    environment = dict(GOOD)
    assert not list(without_unusable(environment))
    assert environment == GOOD


@pytest.fixture(scope="module")
def stories(golden, tmp_path_factory):
    path = tmp_path_factory.mktemp("environment") / "stories.gguf"
    convert(golden / "stories260K", "F32", path)
    return path


def embed(stories, **variables):
    words = [sys.executable, "-m", "quantcli", "embed", stories, "--prompt", "Once"]
    environment = {**os.environ, **variables}
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    return done.returncode, [line for line in done.stderr.splitlines() if not line.startswith("compiling")]


@pytest.mark.parametrize(
    ("name", "value"),
    [("NUMBA_NUM_THREADS", "0"), ("NUMBA_DISABLE_JIT", "1"), ("NUMBA_BOUNDSCHECK", "x")],
)
def test_the_command_works_and_names_the_variable(stories, name, value):
    status, said = embed(stories, **{name: value})
    assert status == 0
    assert len(said) == 1
    assert said[0].startswith("warning: ")
    assert name in said[0]


def test_an_error_of_unknown_cause_names_the_variables(monkeypatch, capsys):
    monkeypatch.setenv("NUMBA_DEBUG", "0")
    assert report(AttributeError("something")) == 1
    assert "hint: the environment has NUMBA_DEBUG: try without" in capsys.readouterr().err
