"""The word `auto` for a calibration text and for an importance matrix."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import run_command
from tiny_checkpoint import write_checkpoint

from quantcli.cli import calibration
from quantcli.conversion.convert import convert
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.imatrix_sums import Sums, read_sums
from quantcli.quality import imatrix as collecting
from quantcli.quality.calibration_text import CALIBRATION

CHUNKS = 3
USED = f"importance matrix: collected from {CALIBRATION}, 1,536 tokens in 3 chunks of 512"


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch, tmp_path):
    monkeypatch.setattr(calibration, "TOKENS", CHUNKS * calibration.CONTEXT)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def quantize(capsys):
    return lambda *words: run_command(capsys, *words)


@pytest.fixture
def runs(monkeypatch) -> list[int]:
    """The number of chunks of each collection."""
    seen: list[int] = []
    collect = collecting.collect

    def counted(model, collector, chunks, *rest, **more):
        seen.append(len(chunks))
        return collect(model, collector, chunks, *rest, **more)

    monkeypatch.setattr(collecting, "collect", counted)
    return seen


@pytest.fixture
def model(golden) -> Path:
    return golden / "stories260K"


def gguf(model: Path, kind: str) -> Path:
    return Path(str(convert(model, kind, "source.gguf")[0].output))


@pytest.mark.parametrize("kind", [None, "F32", "F16", "BF16"])
def test_one_step_makes_the_files_of_two(quantize, runs, model, kind):
    source = model if kind is None else gguf(model, kind)
    words = (source, "--type", "Q4_0,IQ3_XXS")
    status, said, errors = quantize(*words, "--imatrix", "auto", "-o", "one/")
    assert (status, said.count("\n")) == (0, 2)
    assert errors.splitlines()[0] == USED
    assert runs == [CHUNKS]
    # The file is called as the option's value, which the outputs record.
    assert quantize("imatrix", source, "--text", "auto", "--chunks", CHUNKS, "-o", "auto")[0] == 0
    assert quantize(*words, "--imatrix", "./auto", "-o", "two/")[0] == 0
    assert runs == [CHUNKS, CHUNKS]
    found = sorted(path.name for path in Path("one").iterdir())
    assert len(found) == 2
    for name in found:
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()


def test_changes_of_the_model_are_those_of_two_steps(quantize, model):
    words = (model, "--type", "IQ3_XXS", "--prune-layers", "1", "--override-kv", "general.name=str:Pruned")
    assert quantize(*words, "--imatrix", "auto", "-o", "one.gguf")[0] == 0
    assert quantize("imatrix", model, "--text", "auto", "--chunks", CHUNKS, "-o", "auto")[0] == 0
    assert quantize(*words, "--imatrix", "./auto", "-o", "two.gguf")[0] == 0
    assert Path("one.gguf").read_bytes() == Path("two.gguf").read_bytes()


def test_the_file_says_what_was_used(quantize, model):
    assert quantize(model, "--type", "Q4_0", "--imatrix", "auto", "-o", "m.gguf")[0] == 0
    with open_gguf("m.gguf") as file:
        assert file.get("quantize.imatrix.file") == "auto"
        assert file.get("quantize.imatrix.dataset") == CALIBRATION
        assert file.get("quantize.imatrix.chunks_count") == CHUNKS
        assert file.get("quantize.imatrix.entries_count") == 35


def test_a_dry_run_says_that_it_would_collect(quantize, runs, model):
    words = (model, "--type", "IQ3_XXS,Q5_K_M", "--imatrix", "auto", "--json")
    status, said, errors = quantize(*words, "--dry-run", "-o", "made/")
    assert status == 0
    assert errors.splitlines()[0] == f"importance matrix: would be collected from {CALIBRATION}, at most 1,536 tokens"
    assert not runs
    assert not list(Path().iterdir())
    planned = [document["tensors"] for document in json.loads(said)]
    status, said, _ = quantize(*words, "-o", "made/")
    assert status == 0
    assert [document["tensors"] for document in json.loads(said)] == planned


def test_chunks_are_no_longer_than_the_context(quantize, model):
    convert(model, "F16", "long.gguf")
    words = ("long.gguf", "--type", "F16", "--override-kv", "llama.context_length=int:64", "-o", "short.gguf")
    assert quantize(*words)[0] == 0
    status, _, errors = quantize("short.gguf", "--type", "Q4_0", "--imatrix", "auto", "-o", "m.gguf")
    assert status == 0
    assert errors.splitlines()[0] == f"importance matrix: collected from {CALIBRATION}, 1,536 tokens in 24 chunks of 64"


def test_what_will_not_be_written_is_not_collected(quantize, runs, model):
    Path("there.gguf").write_bytes(b"something")
    for words, status, message in (
        ((model, "--type", "Q4_0", "-o", "there.gguf"), 1, "there.gguf: the file exists"),
        ((model, "--type", "Q4_0", "-o", "nowhere/m.gguf"), 1, "the directory does not exist"),
        ((model, "--type", "Q4_9", "-o", "m.gguf"), 2, "Q4_9"),
        ((model, "--type", "Q4_0", "--tensor-type", "no.such=Q8_0", "-o", "m.gguf"), 2, "no.such"),
        ((gguf(model, "Q8_0"), "--type", "Q4_0", "-o", "m.gguf"), 2, "already quantized, to Q8_0"),
        (("some/model", "--remote", "--type", "Q4_0", "-o", "m.gguf"), 2, "--imatrix auto runs the model"),
    ):
        found, said, errors = quantize(*words, "--imatrix", "auto")
        assert (found, said) == (status, "")
        assert errors.startswith("error: ")
        assert message in errors.splitlines()[0]
    assert not runs
    assert sorted(path.name for path in Path().iterdir()) == ["source.gguf", "there.gguf"]
    assert Path("there.gguf").read_bytes() == b"something"


def test_a_model_that_cannot_be_run_is_refused(quantize, golden):
    description = json.loads((golden / "architectures" / "t5.json").read_text())["checkpoint"]
    place = write_checkpoint(Path(), description)
    (place / "spiece.model").write_bytes((golden / "unigram.model").read_bytes())
    words = (place, "--type", "Q8_0", "-o", "m.gguf")
    status, said, errors = quantize(*words, "--imatrix", "auto")
    assert (status, said) == (1, "")
    assert errors.startswith("error: ")
    assert "architecture 't5'" in errors.splitlines()[0]
    assert not Path("m.gguf").exists()
    assert quantize(*words)[0] == 0


def test_a_file_of_that_name_is_given_with_its_folder(quantize, runs, model):
    Path("auto").write_text("The dog and the cat went to the park, and there they met a bird. " * 60)
    for text, name in (("auto", CALIBRATION), ("./auto", "auto"), (Path("auto").absolute(), str(Path("auto").absolute()))):
        assert quantize("imatrix", model, "--text", text, "--chunks", 2, "-o", "im.gguf", "--overwrite")[0] == 0
        assert read_sums("im.gguf").datasets == (name,)
    assert quantize(model, "--type", "Q4_0", "--imatrix", "auto", "-o", "m.gguf")[0] == 0
    assert quantize(model, "--type", "Q4_0", "--imatrix", "./auto", "-o", "n.gguf")[0] == 1
    assert runs == [2, 2, 2, CHUNKS]


def test_the_built_in_text_goes_with_others_and_is_resumed(quantize, model):
    Path("own.txt").write_text("The dog and the cat went to the park, and there they met a bird. " * 60)
    words = ("imatrix", model, "--text", "own.txt", "--text", "auto", "--ctx", "64", "-o", "im.gguf")
    assert quantize(*words, "--chunks", 2)[0] == 0
    assert read_sums("im.gguf").datasets == ("own.txt", CALIBRATION)
    assert quantize(*words, "--chunks", 3, "--resume")[0] == 0
    assert read_sums("im.gguf").chunks == 3
    status, _, errors = quantize("imatrix", model, "--text", "auto", "--ctx", "64", "-o", "im.gguf", "--resume")
    assert status == 1
    assert f"collected from own.txt, {CALIBRATION} in chunks of 64" in errors


def test_experts_that_no_token_reached_are_named(quantize, model, monkeypatch):
    collect = collecting.collect

    def starved(*arguments, **more):
        sums = collect(*arguments, **more)
        ones = np.ones((4, 8), np.float32)
        entries = {"blk.0.ffn_up_exps.weight": Sums(ones, np.array([3, 0, 5, 0], np.float32))}
        return replace(sums, entries=dict(sums.entries) | entries)

    monkeypatch.setattr(collecting, "collect", starved)
    status, _, errors = quantize(model, "--type", "Q4_0", "--imatrix", "auto", "-o", "m.gguf")
    assert status == 0
    assert errors.splitlines()[1].startswith("layer 0: no token reached experts 1, 3: ")
    assert errors.splitlines()[2].startswith("layer 0: fewer than 256 tokens reached experts 0, 2: ")
