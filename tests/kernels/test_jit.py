"""The cache of compiled kernels: whatever is wrong with it costs the time to compile, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantcli.kernels import kernel_cache
from quantcli.kernels.compilation import trace
from quantcli.kernels.jit import kernel
from quantcli.kernels.kernel_cache import cache_directory, keeps_kernels

ROOT = Path(__file__).parents[2]
STORIES = ROOT / "tests/golden/stories260K"


def doubled(x: Any) -> Any:
    return x + x


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QUANTCLI_CACHE_DIR", str(tmp_path / "cache"))
    return cache_directory()


def comes_from_disk() -> bool:
    """Whether a kernel that gives what it should needs no compiling."""
    function = kernel(doubled)
    assert function(21) == 42
    return bool(function.stats.cache_hits)  # type: ignore[attr-defined]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[:300],
    "cut-early": lambda data: data[:20],
    "garbage": lambda data: np.random.default_rng(1).bytes(3000),
    "a bit": lambda data: data[:-40] + bytes([data[-40] ^ 4]) + data[-39:],
    "a pickle": lambda data: b"\x80\x04\x8c\x060.68.1\x94.",
    "longer": lambda data: data + b"\0",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_replaced(damage: str, folder: Path) -> None:
    assert not comes_from_disk()
    assert comes_from_disk()
    (path,) = folder.iterdir()
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    function = kernel(doubled)
    assert [call.is_compiled() for call in trace(lambda: function(21))] == [False]
    assert not comes_from_disk()
    assert comes_from_disk()


def test_what_cannot_be_read_or_is_another_users_is_replaced(folder: Path) -> None:
    comes_from_disk()
    for path in folder.iterdir():
        if os.geteuid() == 0:
            os.chown(path, 54321, -1)
        else:
            path.chmod(0)
    assert not comes_from_disk()
    assert comes_from_disk()


@pytest.mark.parametrize("where", ["/dev/null", "file", "file/below", "directories"])
def test_a_place_that_holds_no_files_costs_nothing_else(
    where: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    if where == "directories":
        comes_from_disk()
        for path in [*folder.iterdir()]:
            path.unlink()
            path.mkdir()
    else:
        monkeypatch.setenv("QUANTCLI_CACHE_DIR", str(tmp_path / where))
        assert not keeps_kernels()
    assert not comes_from_disk()
    assert not comes_from_disk()


@pytest.mark.skipif(sys.platform != "linux", reason="homes are elsewhere")
def test_where_there_is_no_home_nothing_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("QUANTCLI_CACHE_DIR", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory().parent == tmp_path / ".cache/quantcli"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says its specification
    assert cache_directory().parent == tmp_path / ".cache/quantcli"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_directory().parent == Path("/elsewhere/quantcli")
    monkeypatch.delenv("XDG_CACHE_HOME")
    for home in (homeless, Path):
        monkeypatch.setattr(kernel_cache.Path, "home", home)
        assert cache_directory().is_relative_to("/dev/null")
        assert not comes_from_disk()


MONTH = 31 * 24 * 3600


def aged(place: Path, *files: str) -> Path:
    place.mkdir(parents=True)
    for name in files:
        (place / name).touch()
    then = time.time() - MONTH
    os.utime(place, (then, then))
    return place


def test_caches_of_other_versions_go_when_they_have_not_been_used_for_a_month(folder: Path) -> None:
    here = folder.parent
    gone = [aged(here / ("kernels-" + 16 * digit), "a.nbi", "a.1.nbc.tmp.0f") for digit in "ab"]
    kept = [aged(here / name, "a.nbi", "notes.txt") for name in ("kernels-0000000000000000", "kernels-mine", "models")]
    used = aged(here / "kernels-1111111111111111", "a.nbi")
    os.utime(used)
    outside = aged(here.parent / "outside", "a.nbi")
    (here / "kernels-2222222222222222").symlink_to(outside)
    assert not comes_from_disk()
    assert not any(place.exists() for place in gone)
    assert all((place / "notes.txt").exists() for place in kept)
    assert (used / "a.nbi").exists()
    assert (outside / "a.nbi").exists()


def test_a_cache_that_is_read_counts_as_used(folder: Path) -> None:
    assert not comes_from_disk()
    os.utime(folder, (0, 0))
    assert comes_from_disk()
    assert time.time() - folder.stat().st_mtime < MONTH


def quantize(tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "quantcli", STORIES, "--type", "Q8_0", "-o", tmp_path / "m.gguf", "--overwrite"]
    return subprocess.run(
        list(map(str, words)), capture_output=True, text=True, cwd=ROOT, env={**os.environ, **variables}, check=False
    )


def test_only_what_can_be_kept_is_said_to_be(tmp_path: Path) -> None:
    for place, said in (("/dev/null", "they cannot be kept in /dev/null/kernels-"), (str(tmp_path / "cache"), "(once)")):
        done = quantize(tmp_path, QUANTCLI_CACHE_DIR=place)
        assert done.returncode == 0
        assert said in done.stderr
