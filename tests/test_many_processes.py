"""Several processes at once: one cold kernel cache, one output, one directory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from quantcli.conversion.convert import convert

EXAMPLE = Path(__file__).parents[1] / "examples" / "storyteller"


def together(lines: Sequence[Sequence[object]], **environment: str) -> list[tuple[int, str]]:
    """Run commands at the same time. Status and stderr of each."""
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "quantcli", *map(str, line)], env={**os.environ, **environment},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for line in lines
    ]  # fmt: skip
    found = [(process.communicate(timeout=300)[1], process.returncode) for process in started]
    return [(status, errors) for errors, status in found]


@pytest.fixture
def whole(tmp_path) -> dict[str, bytes]:
    """The files of conversions that run alone."""
    (tmp_path / "alone").mkdir()
    made = convert(EXAMPLE, ["Q4_0", "Q8_0"], tmp_path / "alone")
    return {result.type: result.shards[0].path.read_bytes() for result in made}


def test_five_processes_share_a_cold_cache(tmp_path, whole):
    """Each compiles, or waits for none: all have the right bytes, and the cache serves the next one."""
    lines = [[EXAMPLE, "--type", "Q4_0", "-o", tmp_path / f"{number}.gguf"] for number in range(5)]
    cache = {"QUANTCLI_CACHE_DIR": str(tmp_path / "cache")}
    assert [status for status, _ in together(lines, **cache)] == [0] * 5
    assert {(tmp_path / f"{number}.gguf").read_bytes() for number in range(5)} == {whole["Q4_0"]}
    ((status, errors),) = together([[EXAMPLE, "--type", "Q4_0", "-o", tmp_path / "next.gguf"]], **cache)
    assert (status, "compil" in errors) == (0, False)


@pytest.mark.parametrize("more", [("--overwrite",), ("--overwrite", "--resume")])
def test_four_processes_with_the_same_output(tmp_path, whole, more):
    """The file is that of one of them, and no temporary file is left."""
    (tmp_path / "out").mkdir()
    lines = [[EXAMPLE, "--type", kind, "-o", tmp_path / "out" / "m.gguf", *more] for kind in ("Q4_0", "Q8_0") * 2]
    found = together(lines)
    assert all(status == 0 or "another conversion" in errors for status, errors in found), found
    assert any(status == 0 for status, _ in found)
    assert (tmp_path / "out" / "m.gguf").read_bytes() in whole.values()
    left = [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    assert not left or "--resume" in more


def test_without_overwrite_one_of_four_processes_wins(tmp_path, whole):
    (tmp_path / "out").mkdir()
    found = together([[EXAMPLE, "--type", "Q4_0", "-o", tmp_path / "out" / "m.gguf"]] * 4)
    assert all(status == 0 or "the file exists" in errors for status, errors in found), found
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m.gguf"]
    assert (tmp_path / "out" / "m.gguf").read_bytes() == whole["Q4_0"]


def test_eight_conversions_into_one_directory(tmp_path, whole):
    lines = [[EXAMPLE, "--type", kind, "-o", tmp_path / f"{kind}-{number}.gguf"]
             for number in range(4) for kind in ("Q4_0", "Q8_0")]  # fmt: skip
    assert [status for status, _ in together(lines)] == [0] * 8
    for number in range(4):
        for kind, content in whole.items():
            assert (tmp_path / f"{kind}-{number}.gguf").read_bytes() == content
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
