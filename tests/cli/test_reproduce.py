"""`quantize reproduce`: the model gives the same file, or what differs is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import run_command

from quantcli.formats.gguf.reader import open_gguf

STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller"


@pytest.fixture
def make(tmp_path, capsys):
    """Converts the example with these options."""

    def made(*options: object) -> Path:
        assert run_command(capsys, STORYTELLER, *options, "-o", tmp_path / "m.gguf")[0] == 0
        return min(tmp_path.glob("m*.gguf"))

    return made


@pytest.fixture
def reproduce(capsys):
    return lambda file, *options: run_command(capsys, "reproduce", file, "--source", STORYTELLER, *options)


@pytest.mark.parametrize(
    "options",
    [
        ("--type", "Q4_K_M"),
        ("--type", "IQ4_XS", "--imatrix", "auto"),
        ("--type", "Q3_K_M", "--quality", "good", "--tokens", 1024),
        ("--type", "Q8_0", "--tensor-type", "attn_q=Q4_0"),
        ("--type", "F16"),
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_a_file_is_reproduced_from_what_it_records(make, reproduce, options):
    status, said, _ = reproduce(make(*options))
    assert (status, said.endswith("gives the same file, byte for byte\n")) == (0, True)


def test_a_split_model(make, reproduce):
    status, said, _ = reproduce(make("--type", "Q8_0", "--split-max-size", "1M"))
    assert (status, "the same metadata and tensors" in said) == (0, True)


@pytest.mark.parametrize(("threads", "simd"), [(1, "generic"), (3, "")])
def test_on_other_threads_and_instructions(make, threads, simd):
    words = [sys.executable, "-m", "quantcli", "reproduce", make("--type", "Q4_K_M"), "--source", STORYTELLER]
    environment = {**os.environ, "QUANTCLI_SIMD": simd}
    subprocess.run([*words, "--threads", str(threads)], check=True, env=environment)


def test_options_that_no_file_records_are_given_again(make, reproduce):
    file = make("--type", "Q8_0", "--override-kv", "general.name=str:other")
    status, _, errors = reproduce(file)
    assert (status, "general.name: the source gives another value" in errors) == (1, True)
    assert reproduce(file, "--override-kv", "general.name=str:other")[0] == 0


def regions(file: Path) -> dict[str, int]:
    """Places in a file whose last bit matters: in the header, in a tensor, in the padding after a tensor."""
    with open_gguf(file) as opened:
        tensors = list(opened.tensors.values())
    ends = [tensor.offset + tensor.nbytes for tensor in tensors]
    padded = next((end for end, after in zip(ends, tensors[1:], strict=False) if end < after.offset), None)
    places = {"the version": 4, "a tensor": tensors[5].offset, "the last byte": file.stat().st_size - 1}
    return places if padded is None else places | {"padding": padded}


def test_any_changed_bit_is_found(make, reproduce):
    file = make("--type", "Q4_K_M")
    whole = file.read_bytes()
    for name, place in regions(file).items():
        changed = bytearray(whole)
        changed[place] ^= 1
        file.write_bytes(changed)
        assert reproduce(file)[0] == 1, name


def test_a_changed_row_is_named(make, reproduce):
    file = make("--type", "Q8_0")
    with open_gguf(file) as opened:
        tensor = opened.tensors["blk.1.attn_k.weight"]
    changed = bytearray(file.read_bytes())
    changed[tensor.offset + 7 * tensor.row_bytes + 3] ^= 1
    file.write_bytes(changed)
    status, said, _ = reproduce(file, "--json")
    assert status == 1
    assert json.loads(said)["faults"] == ["tensor 'blk.1.attn_k.weight': row 7 is not what the source gives"]


def test_bytes_after_the_end(make, reproduce):
    file = make("--type", "Q8_0")
    file.write_bytes(file.read_bytes() + b"\0")
    status, _, errors = reproduce(file)
    assert (status, "bytes, expected" in errors) == (1, True)


def test_what_is_missing_is_asked_for(make, reproduce, tmp_path, capsys):
    matrix, text = tmp_path / "im.gguf", tmp_path / "text.txt"
    text.write_text("Once upon a time there was a little girl. " * 200)
    assert run_command(capsys, "imatrix", STORYTELLER, "--text", text, "--ctx", 64, "-o", matrix)[0] == 0
    file = make("--type", "IQ3_S", "--imatrix", matrix)
    assert reproduce(file)[0] == 0
    moved = matrix.rename(tmp_path / "elsewhere.gguf")
    status, _, errors = reproduce(file)
    assert (status, "hint: --imatrix FILE" in errors) == (2, True)
    assert reproduce(file, "--imatrix", moved)[0] == 1, "its name is in the file"


def test_another_calibration_text_is_refused(make, reproduce, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a little girl. " * 200)
    file = make("--type", "Q4_K_M", "--quality", "good", "--tokens", 512, "--calibration", text)
    status, _, errors = reproduce(file)
    assert (status, "hint: --calibration FILE" in errors) == (2, True)
    assert reproduce(file, "--calibration", text)[0] == 0
    text.write_text("Once upon a time there was a little dog. " * 200)
    status, _, errors = reproduce(file, "--calibration", text)
    assert (status, "not those that the file was made with" in errors) == (2, True)
