"""`quantize verify`: checksums find any changed bit, damaged scales show without them, and a source finds other weights."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from command_line import run_command

from quantcli.conversion.convert import convert
from quantcli.formats.checksums import read_checksums
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.shards import by_count
from quantcli.formats.gguf.split import split_gguf

STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("verify") / "model.gguf"
    convert(STORYTELLER, "Q4_K_M", path)
    return path


@pytest.fixture
def model(made, tmp_path) -> Path:
    return Path(shutil.copy(made, tmp_path / "model.gguf"))


@pytest.fixture
def verify(capsys):
    return lambda *words: run_command(capsys, "verify", *words)


def flip(path: Path, offset: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


def test_a_whole_file(verify, model):
    status, said, errors = verify(model)
    assert (status, errors) == (0, "")
    unchecked = "no checksums, so that its metadata were not checked (--save writes them)"
    assert said == f"{model}: 38 tensors, all numbers finite, {unchecked}\n"


def test_checksums_are_those_of_sha256sum(verify, model):
    status, said, _ = verify(model, "--save")
    assert (status, said.rstrip().endswith(f"checksums written to {model}.sha256")) == (0, True)
    assert len(read_checksums(Path(f"{model}.sha256")).tensors) == 38
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", f"{model}.sha256"], cwd=model.parent, check=True)
    assert verify(model)[1].rstrip().endswith(f"checksums as in {model}.sha256")
    status, _, errors = verify(model, "--save")
    assert status == 1
    assert "exists" in errors
    assert verify(model, "--save", "--overwrite")[0] == 0


def place_of(path: Path, what: str) -> int:
    """A byte of the file: of its metadata, of the padding before the data, of a scale, of a code, or the last one."""
    with open_gguf(path) as file:
        tensor = file.tensors["blk.1.ffn_up.weight"]
        places = {
            "metadata": path.read_bytes().index(b"general.name") + 30,
            "padding": file.data_offset - 1,
            "scale": tensor.offset,
            "code": tensor.offset + 100,
            "last": file.file_bytes - 1,
        }
    return places[what]


@pytest.mark.parametrize("what", ["metadata", "padding", "scale", "code", "last"])
def test_one_changed_bit_is_found(verify, model, what):
    assert verify(model, "--save")[0] == 0
    assert what != "padding" or model.read_bytes()[place_of(model, what)] == 0
    flip(model, place_of(model, what))
    status, said, errors = verify(model)
    assert (status, said) == (1, "")
    assert f"{model}: model.gguf: its SHA-256 is " in errors
    assert ("tensor 'blk.1.ffn_up.weight': its data have another SHA-256" in errors) == (what in ("scale", "code"))


@pytest.mark.parametrize("offset", [*range(24), 200])
def test_a_changed_bit_of_the_header_is_found(verify, model, offset):
    """Of the magic, the version, the counts."""
    assert verify(model, "--save")[0] == 0
    flip(model, offset, bit=offset % 8)
    status, said, errors = verify(model)
    assert (status, said) == (1, "")
    assert errors.startswith(f"{model}: ")


def test_a_file_that_cannot_be_read_does_not_hide_others(verify, model, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model.read_bytes()[:-40])
    missing = tmp_path / "missing.gguf"
    status, said, errors = verify(cut, missing, model)
    assert status == 1
    assert said.startswith(f"{model}: 38 tensors")
    assert [line.split(": ")[0] for line in errors.splitlines()] == [str(cut), str(missing)]


def test_a_scale_that_is_not_finite_is_found_without_checksums(verify, model):
    with open_gguf(model) as file:
        offset = file.tensors["blk.1.ffn_up.weight"].offset
    content = bytearray(model.read_bytes())
    content[offset : offset + 2] = np.float16(np.inf).tobytes()
    model.write_bytes(content)
    status, said, errors = verify(model)
    assert (status, said) == (1, "")
    assert "tensor 'blk.1.ffn_up.weight': the Q4_K block of the weights" in errors
    status, _, errors = verify(model, "--save")
    assert (status, "no checksums were written" in errors) == (1, True)
    assert not Path(f"{model}.sha256").exists()


@pytest.mark.parametrize("change", [lambda content: content[:-32], lambda content: content + b"\0" * 32])
def test_another_length(verify, model, change):
    assert verify(model, "--save")[0] == 0
    model.write_bytes(change(model.read_bytes()))
    status, _, errors = verify(model)
    assert status == 1
    assert str(model) in errors


def test_rows_are_derived_again(verify, model):
    status, said, _ = verify(model, "--source", STORYTELLER)
    assert (status, said.rstrip().endswith(f"sampled rows as {STORYTELLER} gives them")) == (0, True)
    flip(model, place_of(model, "code"), bit=2)
    status, _, errors = verify(model, "--source", STORYTELLER, "--full")
    assert status == 1
    assert f"{model}: tensor 'blk.1.ffn_up.weight': row 0 is not what the source gives" in errors


def test_rows_of_another_type_than_the_recipe_has(verify, tmp_path):
    from quantcli.conversion.plan import PlanOptions, parse_override

    path = tmp_path / "mixed.gguf"
    convert(STORYTELLER, "Q4_K_M", path, options=PlanOptions(overrides=(parse_override("ffn_down=Q5_0"),)))
    assert verify(path, "--source", STORYTELLER, "--full")[0] == 0


def test_a_split_model_is_one(verify, model, tmp_path):
    with open_gguf(model) as file:
        split_gguf(file, tmp_path / "part", by_count(20))
    first, second = sorted(tmp_path.glob("part-*"))
    assert verify(first, "--save")[0] == 0
    assert list(read_checksums(Path(f"{first}.sha256")).files) == [first.name, second.name]
    flip(second, second.stat().st_size - 1)
    status, _, errors = verify(first)
    assert status == 1
    assert f"{second.name}: its SHA-256 is" in errors


def test_one_document_of_several_files(verify, model, tmp_path):
    other = Path(shutil.copy(model, tmp_path / "other.gguf"))
    assert verify(other, "--save")[0] == 0
    flip(other, place_of(other, "code"))
    status, said, _ = verify(model, other, "--json")
    assert status == 1
    first, second = json.loads(said)
    assert (first["path"], first["faults"]) == (str(model), [])
    assert len(second["faults"]) == 2


def test_what_cannot_be_derived_is_said(verify, model, tmp_path):
    assert verify(model, "--full")[:2] == (2, "")
    assert "--full needs --source" in verify(model, "--full")[2]
    path = tmp_path / "with-imatrix.gguf"
    from quantcli.conversion.model_changes import Changes
    from quantcli.formats.gguf.spec import string

    for key, message in (
        ("quantize.imatrix.file", "the file was quantized with the importance matrix 'x'"),
        ("quantize.calibration.quality", "its rows cannot be derived one by one"),
    ):
        convert(STORYTELLER, "Q8_0", path, changes=Changes(metadata={key: string("x")}), overwrite=True)
        status, _, errors = verify(path, "--source", STORYTELLER)
        assert status == 2
        assert message in errors


def test_checksums_that_are_none(verify, model):
    for text, message in (("", "has no checksum"), ("nonsense\n", "line 1 is no SHA-256"), ("\udcff", "cannot be read")):
        Path(f"{model}.sha256").write_bytes(text.encode("utf-8", "surrogateescape"))
        status, _, errors = verify(model)
        assert status == 1
        assert message in errors
