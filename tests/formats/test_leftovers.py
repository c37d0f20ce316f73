"""Killed runs: no mixture of old and new shards is opened, and the next run or `quantize clean` clears what they left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from quantcli.core.block_types import TYPES
from quantcli.core.errors import FormatError, OutputError
from quantcli.formats import leftovers
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.shards import by_count, is_temporary_of, shard_path
from quantcli.formats.gguf.spec import Metadata, string
from quantcli.formats.gguf.split import SplitWriter
from quantcli.formats.leftovers import find_leftovers, label_of
from quantcli.formats.output_file import OutputFile
from quantcli.tensors.tensor import TensorInfo
from tests.command_line import run_command

pytestmark = pytest.mark.skipif(not leftovers.HAS_LOCKS, reason="the system has no locks that end with their process")

METADATA: Metadata = {"general.architecture": string("llama")}
TENSORS = [TensorInfo(f"blk.{index}.weight", (2, 8), TYPES["F32"]) for index in range(5)]
RENAMES = 7
"""Old shards moved away, new ones moved to their places, and one at the end: of three shards."""

KILLED = """
import os, signal, sys
from pathlib import Path
from tests.formats.test_leftovers import write
calls = []
def counted(rename):
    def call(*arguments):
        calls.append(arguments)
        if len(calls) == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(*arguments)
    return call
Path.rename, Path.replace = counted(Path.rename), counted(Path.replace)
write(Path(sys.argv[1]), float(sys.argv[3]), overwrite=sys.argv[4] == "overwrite")
print(len(calls))
"""


def write(prefix: Path, value: float, *, overwrite: bool = False) -> None:
    """Three shards whose weights are all `value`."""
    with SplitWriter(prefix, METADATA, by_count(2)(TENSORS), overwrite=overwrite) as writer:
        for index in range(len(TENSORS)):
            writer.write(index, 0, np.full(16, value, "<f4"))


def values(prefix: Path) -> set[float]:
    with open_gguf(shard_path(prefix, 1, 3)) as file:
        return {float(weight) for tensor in file.tensors.values() for weight in tensor.load().ravel()}


def run_killed(prefix: Path, at: int, value: float, how: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", KILLED, str(prefix), str(at), str(value), how]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)


def hidden(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("at", range(1, RENAMES + 1))
def test_a_kill_leaves_the_old_model_or_the_new_one(tmp_path, capsys, at):
    """Or no first shard, which `clean` puts back."""
    prefix = tmp_path / "m"
    write(prefix, 1)
    assert run_killed(prefix, at, 2, "overwrite").returncode == -signal.SIGKILL
    if at in (1, RENAMES):
        assert values(prefix) == {1 if at == 1 else 2}
    else:
        with pytest.raises(FormatError, match="the first of 3 shards is missing") as caught:
            values(prefix)
        assert caught.value.hint == f"`quantize clean {tmp_path}` puts the old shards back"
    status, _, _ = run_command(capsys, "clean", tmp_path, "--yes")
    assert status == 0
    assert values(prefix) == {2 if at == RENAMES else 1}
    assert not hidden(tmp_path)


def test_the_renames_are_all_tested(tmp_path):
    write(tmp_path / "m", 1)
    assert run_killed(tmp_path / "m", RENAMES + 1, 2, "overwrite").stdout == f"{RENAMES}\n"


@pytest.mark.parametrize("at", range(1, RENAMES + 1))
def test_the_next_run_replaces_all(tmp_path, at):
    prefix = tmp_path / "m"
    write(prefix, 1)
    run_killed(prefix, at, 2, "overwrite")
    write(prefix, 3, overwrite=True)
    assert values(prefix) == {3}
    assert not hidden(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_shards_of_a_killed_first_run(tmp_path):
    prefix = tmp_path / "m"
    run_killed(prefix, 3, 1, "new")
    with pytest.raises(FormatError, match="the first of 3 shards is missing, and 2 of the others are there"):
        values(prefix)
    with pytest.raises(OutputError, match="the file exists") as caught:
        write(prefix, 2)
    assert "m-00001-of-00003.gguf is missing: a run was interrupted" in caught.value.hint
    write(prefix, 2, overwrite=True)
    assert values(prefix) == {2}
    assert not hidden(tmp_path)


@pytest.mark.parametrize("at", range(1, RENAMES))
def test_a_failure_while_replacing_keeps_the_old_model(tmp_path, monkeypatch, at):
    prefix, calls = tmp_path / "m", []
    write(prefix, 1)

    def failing(rename):
        def call(path, target):
            calls.append(target)
            if len(calls) == at:
                raise OSError(5, "Input/output error")
            return rename(path, target)

        return call

    monkeypatch.setattr(Path, "rename", failing(Path.rename))
    monkeypatch.setattr(Path, "replace", failing(Path.replace))
    with pytest.raises(OutputError, match="Input/output error"):
        write(prefix, 2, overwrite=True)
    assert values(prefix) == {1}
    assert len(list(tmp_path.iterdir())) == 3


@contextmanager
def other_process(program: str, *words: object) -> Iterator[subprocess.Popen[str]]:
    """A process that says a line when it is ready, and ends when it is killed."""
    with subprocess.Popen([sys.executable, "-c", program, *map(str, words)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


WRITING = """
import sys, time
from quantcli.formats.output_file import OutputFile
with OutputFile(sys.argv[1], 1000, overwrite=True) as file:
    print("ready", flush=True)
    time.sleep(100)
"""


def test_temporary_files_of_running_processes_stay(tmp_path, capsys):
    target = tmp_path / "out.gguf"
    with other_process(WRITING, target):
        (name,) = hidden(tmp_path)
        with OutputFile(target, 4) as file:
            file.write_at(memoryview(b"data"), 0)
        assert hidden(tmp_path) == [name]
        assert run_command(capsys, "clean", tmp_path, "--yes")[1] == "no temporary files of killed runs\n"
        assert hidden(tmp_path) == [name]
    assert target.read_bytes() == b"data"
    with OutputFile(tmp_path / "other.gguf", 4):
        assert name in hidden(tmp_path), "of another target"
    with OutputFile(target, 4, overwrite=True):
        assert name not in hidden(tmp_path)
    assert not hidden(tmp_path)


def test_cleaning_lists_first(tmp_path, capsys, monkeypatch):
    with other_process(WRITING, tmp_path / "out.gguf"):
        pass
    (name,) = hidden(tmp_path)
    status, said, _ = run_command(capsys, "clean", tmp_path)
    assert status == 0
    assert name in said
    assert said.endswith("nothing was removed; --yes removes them\n")
    document = json.loads(run_command(capsys, "clean", tmp_path, "--json")[1])
    entry = {"path": str(tmp_path / name), "bytes": 1000, "put_back": []}
    assert document == {"leftovers": [entry], "removed": 0}
    monkeypatch.chdir(tmp_path)
    document = json.loads(run_command(capsys, "clean", "--json", "--yes")[1])
    assert document["removed"] == 1
    assert not hidden(tmp_path)
    status, _, errors = run_command(capsys, "clean", tmp_path / "missing")
    assert (status, errors) == (1, f"error: {tmp_path / 'missing'}: cannot be searched: No such file or directory")


def test_other_hidden_files_stay(tmp_path):
    names = [".profile", ".a.part", ".a.1234567.part", ".a.12345678.old", "a.12345678.part", ".a.12345678.partial"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / ".link.12345678.part").symlink_to("a.12345678.part")
    os.mkfifo(tmp_path / ".pipe.12345678.part")
    assert not find_leftovers(tmp_path)


@pytest.mark.parametrize("prefix", ["m", "n" * 36, "n" * 41, "n" * 59, "n" * 60, "n" * 100])
def test_temporary_files_of_a_split_model_are_recognized(prefix):
    assert is_temporary_of(prefix, label_of(shard_path(Path(prefix), 7, 9).name))
    assert is_temporary_of(prefix, label_of(prefix))
    assert not is_temporary_of(prefix, label_of(shard_path(Path(f"x{prefix}"), 7, 9).name))
    assert not is_temporary_of("m", "m-other.gguf")
