"""`--resume`: an interrupted conversion is continued, with the bytes of an uninterrupted one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import run_command

from quantcli.conversion import execute
from quantcli.conversion.convert import Progress, convert
from quantcli.core.errors import OutputError
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.imatrix import Imatrix

TYPES = ["Q8_0", "Q4_0"]

KILLED = """
import os, signal, sys
from pathlib import Path
from quantcli.conversion.convert import convert
renames, calls, rename = int(sys.argv[1]), [], Path.replace
def replace(path, target):
    calls.append(path)
    if len(calls) == renames:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)
Path.replace = replace
convert(sys.argv[2], ["Q8_0", "Q4_0"], sys.argv[3], **eval(sys.argv[4]))
"""


@pytest.fixture
def model(golden, tmp_path) -> Path:
    return Path(shutil.copytree(golden / "stories260K", tmp_path / "model"))


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def converted(monkeypatch) -> list[int]:
    """The tensors of the chunks that are converted, as they are."""
    found: list[int] = []
    dequantized = execute.check_source

    def check(tensor, start, values):
        found.append(start)
        return dequantized(tensor, start, values)

    monkeypatch.setattr(execute, "check_source", check)
    return found


def interrupted_after(chunks: int) -> Progress:
    """Progress at whose so many-th chunk Ctrl-C is pressed."""
    left = [chunks]

    def advance(done: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    return Progress(advance=advance)


def interrupt(model: Path, folder: Path, chunks: int, types=TYPES, **more) -> None:
    with pytest.raises(KeyboardInterrupt):
        convert(model, types, folder, threads=1, progress=interrupted_after(chunks), resume=True, **more)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def hidden(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("more", [{}, {"max_shard_bytes": 100_000}], ids=["files", "shards"])
@pytest.mark.parametrize("chunks", [5, 17, 40])
def test_the_rest_is_converted_and_the_bytes_are_the_same(model, folder, tmp_path, converted, chunks, more):
    expected = tmp_path / "expected"
    expected.mkdir()
    convert(model, TYPES, expected, threads=1, **more)
    whole = len(converted)
    converted.clear()
    interrupt(model, folder, chunks, **more)
    assert not [name for name in contents(folder) if not name.startswith(".")]
    first = len(converted)
    convert(model, TYPES, folder, threads=1, resume=True, **more)
    assert len(converted) == whole, "no chunk is converted twice"
    assert 0 < first < whole
    assert contents(folder) == contents(expected)


def test_several_interruptions(model, folder, tmp_path, converted):
    convert(model, "Q8_0", tmp_path / "expected.gguf", threads=1)
    whole = len(converted)
    converted.clear()
    for chunks in (3, 20, 30):
        interrupt(model, folder, chunks, ["Q8_0"])
    convert(model, "Q8_0", folder, threads=1, resume=True)
    assert len(converted) == whole
    assert list(contents(folder).values()) == [(tmp_path / "expected.gguf").read_bytes()]


def test_damaged_bytes_are_converted_again(model, folder, tmp_path, converted):
    """As after a power cut: the journal says that bytes are written, and the disk has others."""
    convert(model, "Q8_0", tmp_path / "expected.gguf", threads=1)
    whole = len(converted)
    converted.clear()
    interrupt(model, folder, 30, ["Q8_0"])
    (part,) = folder.glob(".*.part")
    with open_gguf(tmp_path / "expected.gguf") as file:
        place = next(tensor.offset for tensor in file.tensors.values() if tensor.type.name == "Q8_0")
    with part.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))
    convert(model, "Q8_0", folder, threads=1, resume=True)
    assert len(converted) == whole + 1
    assert list(contents(folder).values()) == [(tmp_path / "expected.gguf").read_bytes()]


@pytest.mark.parametrize("line", [b"[12345, 77", b"null\n", b'["a", 1, 2]\n', b"\xff\n", b"[1, 2]\n"])
def test_a_damaged_line_counts_as_missing(model, folder, tmp_path, line):
    convert(model, "Q8_0", tmp_path / "expected.gguf")
    interrupt(model, folder, 9, ["Q8_0"])
    (journal,) = folder.glob(".*.journal")
    journal.write_bytes(journal.read_bytes() + line)
    interrupt(model, folder, 20, ["Q8_0"])
    convert(model, "Q8_0", folder, resume=True)
    assert list(contents(folder).values()) == [(tmp_path / "expected.gguf").read_bytes()]


def touch(model: Path) -> None:
    os.utime(model / "model.safetensors", ns=(1, 1))


def matrix(scale: float, model: Path) -> Imatrix:
    """Importance for one tensor."""
    return Imatrix("im.gguf", (), 1, {"blk.0.attn_q.weight": np.full(64, scale, np.float32)})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda model: {"types": ["Q4_0"]}, "--type"),
        (lambda model: touch(model) or {}, "model.safetensors"),
        (lambda model: {"imatrix": matrix(2, model)}, "the importance matrix"),
        (lambda model: {"as_reference": True}, "--as-reference"),
    ],
)
def test_another_conversion_is_refused_by_name(model, folder, change, named):
    request = {"types": ["Q8_0"], "imatrix": matrix(1, model)}
    target = folder / "m.gguf"
    interrupt(model, target, 9, **request)
    before = contents(folder)
    with pytest.raises(OutputError, match=f"of another conversion; what differs: {named}") as raised:
        convert(model, output=target, resume=True, **request | change(model))
    assert "without --resume" in (raised.value.hint or "")
    assert contents(folder) == before
    convert(model, output=target, **request)
    assert list(contents(folder)) == ["m.gguf"]


def test_a_file_of_another_name_is_left_alone(model, folder):
    """The names of temporary files have the first 60 characters of the target's only."""
    first, second = folder / f"{'n' * 70}1.gguf", folder / f"{'n' * 70}2.gguf"
    interrupt(model, first, 9, ["Q8_0"])
    convert(model, "Q8_0", second, resume=True)
    assert hidden(folder) == [".journal", ".part"]
    convert(model, "Q8_0", first, resume=True)
    assert first.read_bytes() == second.read_bytes()
    assert hidden(folder) == []


@pytest.mark.parametrize("more", [{}, {"max_shard_bytes": 100_000}], ids=["files", "shards"])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("renames", [1, 2])
def test_a_kill_while_files_appear(model, folder, tmp_path, renames, overwrite, more):
    """Files that have appeared already are not in the way."""
    expected = tmp_path / "expected"
    expected.mkdir()
    convert(model, TYPES, expected, **more)
    if overwrite:
        shutil.copytree(expected, folder, dirs_exist_ok=True)
        for path in folder.iterdir():
            path.write_bytes(b"old")
    request = {"resume": True, "overwrite": overwrite, "threads": 1, **more}
    words = [sys.executable, "-c", KILLED, str(renames), str(model), str(folder), repr(request)]
    killed = subprocess.run(words, check=False)
    assert killed.returncode == -signal.SIGKILL
    convert(model, TYPES, folder, resume=True, overwrite=overwrite, **more)
    assert contents(folder) == contents(expected)


def test_without_the_option_it_is_begun_anew_and_nothing_stays(model, folder, converted):
    interrupt(model, folder, 30, ["Q8_0"])
    first = len(converted)
    with pytest.raises(KeyboardInterrupt):
        convert(model, ["Q8_0"], folder, threads=1, progress=interrupted_after(first))
    assert contents(folder) == {}


def test_clean_takes_the_file_and_its_journal_for_one(model, folder, capsys):
    interrupt(model, folder, 30)
    assert hidden(folder) == [".journal", ".journal", ".part", ".part"]
    status, out, _ = run_command(capsys, "clean", folder, "--yes")
    assert status == 0
    assert "2 of 2 removed" in out
    assert contents(folder) == {}


def test_the_command_says_how_to_go_on(model, folder, capsys, monkeypatch):
    """Where a run with the option is interrupted."""
    monkeypatch.setattr(execute, "check_source", raise_interrupt)
    status, _, errors = run_command(capsys, model, "--type", "Q8_0", "-o", folder / "m.gguf", "--resume")
    assert status == 130
    assert errors.endswith("the same command continues it")
    status, _, errors = run_command(capsys, model, "--type", "Q8_0", "-o", folder / "other.gguf")
    assert status == 130
    assert "continues" not in errors


def raise_interrupt(*arguments: object) -> None:
    raise KeyboardInterrupt
