"""Spoiled checkpoints and absurd options are refused in a line, or do no harm: `spoiled_checkpoints.py` tries more."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import spoiled_checkpoints
from command_line import run_command
from spoiled_checkpoints import decoding_fault, fault, trial

from quantcli.conversion.convert import MOST_THREADS, working_threads

DIGITS = "9" * 5000
"""More than Python reads as a number."""


@pytest.mark.parametrize("first", range(0, 240, 40))
def test_random_trials(first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in range(first, first + 40):
        place = tmp_path / str(seed)
        place.mkdir()
        words = trial(seed, place)
        assert fault(words, place) is None, f"seed {seed}: {words}"
        assert decoding_fault(seed, place) is None, f"seed {seed}"


def test_a_fault_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def main(self, **options: object) -> None:
            raise KeyError("unforeseen")

    monkeypatch.setattr(spoiled_checkpoints, "cli", Broken())
    assert "unforeseen" in (fault(["x"], tmp_path) or "")


@pytest.mark.parametrize(
    "words, status, told",
    [
        (["--split-max-size", DIGITS], 2, "is not a size"),
        (["--prune-layers", DIGITS], 2, "is not a list of layers"),
        (["--tensor-type", "a{99999999999}=Q8_0"], 2, "is not a regular expression"),
        (["--tensor-type", f"{'(' * 5000}=Q8_0"], 2, "is not a regular expression"),
        (["--override-kv", "llama.block_count=float:inf"], 1, "llama.block_count is inf, expected a whole number"),
    ],
)
def test_absurd_options(words: list[str], status: int, told: str, golden: Path, tmp_path: Path, capsys) -> None:
    found, _, errors = run_command(capsys, golden / "stories260K", "--type", "Q4_K_M", "-o", tmp_path / "o.gguf", *words)
    assert (found, told in errors) == (status, True), errors
    assert "bug" not in errors
    assert max(map(len, errors.splitlines())) < 500


def test_a_source_whose_file_type_is_no_number(golden: Path, tmp_path: Path, capsys) -> None:
    first = tmp_path / "first.gguf"
    status, _, _ = run_command(
        capsys, golden / "stories260K", "--type", "F16", "-o", first, "--override-kv", "general.file_type=str:x"
    )
    assert status == 0
    status, _, errors = run_command(capsys, first, "--type", "COPY", "-o", tmp_path / "o.gguf")
    assert (status, errors) == (1, "error: general.file_type is 'x', expected a whole number")


def test_a_file_of_types_with_a_byte_order_mark_and_line_ends_of_windows(golden: Path, tmp_path: Path, capsys) -> None:
    types = tmp_path / "types"
    types.write_bytes(b"\xef\xbb\xbfattn_q=Q8_0\r\nattn_k=F16\r\n")
    words = [golden / "stories260K", "--type", "Q4_0", "--dry-run", "--tensor-type-file", types]
    status, out, _ = run_command(capsys, *words)
    assert status == 0
    assert any("blk.0.attn_q.weight" in line and "Q8_0" in line for line in out.splitlines())
    types.write_bytes(b"attn_q=Q8_0 # caf\xe9")
    status, _, errors = run_command(capsys, *words)
    assert (status, errors) == (2, f"error: {types}: the tensor type file is not UTF-8 (byte 17)")


def test_more_threads_than_the_system_gives(golden: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    assert working_threads(1 << 40) == MOST_THREADS
    started = threading.Thread.start
    count = 0

    def start(thread: threading.Thread) -> None:
        nonlocal count
        if thread.name.startswith("quantize-"):
            count += 1
            if count > 2:
                raise RuntimeError("can't start new thread")
        started(thread)

    words = [golden / "stories260K", "--type", "Q8_0", "--threads", 1 << 40, "-o"]
    monkeypatch.setattr(threading.Thread, "start", start)
    assert run_command(capsys, *words, tmp_path / "few.gguf")[0] == 0
    assert count == 3
    monkeypatch.undo()
    assert run_command(capsys, golden / "stories260K", "--type", "Q8_0", "-o", tmp_path / "usual.gguf")[0] == 0
    assert (tmp_path / "few.gguf").read_bytes() == (tmp_path / "usual.gguf").read_bytes()
