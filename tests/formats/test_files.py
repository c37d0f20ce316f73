"""Reading at positions, whatever the system offers for it."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import pytest
from descriptors import open_descriptors

from quantcli.core.errors import FormatError
from quantcli.tensors import files
from quantcli.tensors.files import InputFile

CONTENT = bytes(range(256)) * 64


@pytest.fixture(params=["positional", "seek and read"])
def file(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InputFile:
    """A file read in both ways, with reads that the system cuts short."""
    if request.param == "seek and read":
        monkeypatch.delattr(os, "preadv", raising=False)
    elif not hasattr(os, "preadv"):
        pytest.skip("this system has no positional read")
    monkeypatch.setattr(files, "_LONGEST_READ", 1000)
    monkeypatch.setattr(files, "_COPIED_READ", 700)
    (tmp_path / "x").write_bytes(CONTENT)
    return InputFile(tmp_path / "x")


def test_reads_any_part(file: InputFile) -> None:
    assert file.size == len(CONTENT)
    end = len(CONTENT)
    for position, count in ((0, 0), (0, 1), (7, 999), (7, 1001), (0, end), (end - 5, 5), (end, 0)):
        assert file.read(position, count) == CONTENT[position : position + count]


def test_reads_from_several_threads(file: InputFile) -> None:
    wrong = []

    def read(start: int) -> None:
        positions = range(start, 12_000, 97)
        wrong.extend(position for position in positions if file.read(position, 3000) != CONTENT[position : position + 3000])

    threads = [threading.Thread(target=read, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_reading_past_the_end_takes_no_memory(file: InputFile) -> None:
    with pytest.raises(FormatError, match=r"expected 4611686018427387904 bytes, found 6 \(at byte 16378\)"):
        file.read(len(CONTENT) - 6, 1 << 62)
    with pytest.raises(FormatError, match="found 0"):
        file.read(1 << 62, 1)


def test_a_shorter_file_is_noticed(file: InputFile) -> None:
    file.read(0, 1)
    os.truncate(file.path, 5000)
    with pytest.raises(FormatError, match=r"the file ends 11384 bytes early \(at byte 5000\)"):
        file.read(0, len(CONTENT))


def test_opens_when_read_and_again_after_closing(file: InputFile) -> None:
    assert open_descriptors(file.path) == 0
    with file:
        file.read(0, 1)
        file.read(9, 1)
        assert open_descriptors(file.path) == 1
    assert open_descriptors(file.path) == 0
    assert file.read(3, 1) == b"\3"
    file.close()
    file.close()


def test_a_forgotten_file_is_closed_without_a_warning(file: InputFile) -> None:
    file.read(0, 1)
    descriptor = file.fileno()
    forgotten = InputFile(file.path)
    forgotten.read(0, 1)
    forgotten_descriptor = forgotten.fileno()
    circle = [forgotten]
    circle.append(circle)  # type: ignore[arg-type]
    del forgotten, circle
    gc.collect()
    os.fstat(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(forgotten_descriptor)


def test_another_file_in_its_place_is_noticed(file: InputFile) -> None:
    file.path.unlink()
    file.path.write_bytes(CONTENT + b"more")
    with pytest.raises(FormatError, match="the file has changed since it was first opened"):
        file.read(0, 1)


def test_a_file_that_is_gone_is_an_error(file: InputFile) -> None:
    file.path.unlink()
    with pytest.raises(FormatError, match="cannot be opened: No such file"):
        file.read(0, 1)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="expected a file, found a directory"):
        InputFile(tmp_path)
    with pytest.raises(FormatError, match="cannot be opened: No such file"):
        InputFile(tmp_path / "none")
    with pytest.raises(FormatError, match="cannot be opened: embedded null byte"):
        InputFile(str(tmp_path) + "/a\0b")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="expected a file, found a device, pipe or socket"):
        InputFile(tmp_path / "pipe")


def test_too_many_open_files_have_a_hint(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="limits are set as on Unix")
    (tmp_path / "x").write_bytes(CONTENT)
    file = InputFile(tmp_path / "x")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(FormatError, match="cannot be opened: Too many open files") as caught:
            file.read(0, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "ulimit" in (caught.value.hint or "")
