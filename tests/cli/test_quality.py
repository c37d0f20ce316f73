"""`quantize MODEL --quality good|best`: the options, what is said, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import run_command

from quantcli.core.errors import UnsupportedError
from quantcli.formats.gguf.reader import open_gguf
from quantcli.quality.calibration_text import CALIBRATION, calibration_text

STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller"
FEW = ("--tokens", "2048")


@pytest.fixture
def quantize(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return lambda *words: run_command(capsys, *words)


def test_one_command(quantize, tmp_path):
    status, said, _ = quantize(STORYTELLER, "--type", "Q4_K_M", "--quality", "good", *FEW)
    assert (status, said.count("\n")) == (0, 1)
    with open_gguf(tmp_path / "storyteller-Q4_K_M.gguf") as file:
        notes = {key: file.get(f"quantize.calibration.{key}") for key in ("quality", "dataset", "tokens", "sha256")}
    assert notes == {"quality": "good", "dataset": CALIBRATION, "tokens": 2048, "sha256": calibration_text().digest}


def test_own_texts_are_named_and_the_document_lists_the_outputs(quantize, tmp_path):
    text = tmp_path / "own.txt"
    text.write_text(calibration_text().text[:20000])
    words = ("--type", "Q4_0,Q8_0", "--quality", "best", "--calibration", text, *FEW, "-o", "out/", "--json")
    status, said, _ = quantize(STORYTELLER, *words)
    assert status == 0
    assert [entry["type"] for entry in json.loads(said)] == ["Q4_0", "Q8_0"]
    with open_gguf(tmp_path / "out" / "storyteller-Q8_0.gguf") as file:
        assert file.get("quantize.calibration.dataset") == str(text)


def test_a_dry_run_runs_nothing_and_plans_as_with_an_importance_matrix(quantize, tmp_path, monkeypatch):
    monkeypatch.setattr("quantcli.quality.calibrate.MomentRun", None)
    status, said, errors = quantize(STORYTELLER, "--type", "IQ3_XXS", "--quality", "best", "--dry-run")
    assert status == 0
    assert "nothing was written" in said
    assert f"quality best: would run at most 51,200 tokens of {CALIBRATION}" in errors
    assert not list(tmp_path.iterdir())


def test_types_without_quantization_run_nothing(quantize, tmp_path, monkeypatch):
    monkeypatch.setattr("quantcli.quality.calibrate.MomentRun", None)
    assert quantize(STORYTELLER, "--type", "F16", "--quality", "best")[0] == 0


def test_moments_are_kept_and_those_of_other_texts_refused(quantize, tmp_path):
    text = tmp_path / "own.txt"
    text.write_text(calibration_text().text[:20000])
    words = (STORYTELLER, "--type", "Q4_0", "--quality", "good", *FEW, "--overwrite", "--moments", "moments")
    assert quantize(*words)[0] == 0
    first = (tmp_path / "storyteller-Q4_0.gguf").read_bytes()
    assert quantize(*words)[0] == 0
    assert (tmp_path / "storyteller-Q4_0.gguf").read_bytes() == first
    status, _, errors = quantize(*words, "--calibration", text)
    assert status == 1
    assert "layer-00000.safetensors: made from another text" in errors
    assert (tmp_path / "storyteller-Q4_0.gguf").read_bytes() == first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--calibration", "auto"), "--calibration needs --quality good or best"),
        (("--tokens", "512"), "--tokens needs --quality good or best"),
        (("--moments", "m"), "--moments needs --quality good or best"),
        (("--gradients", "cpu"), "--gradients needs --quality good or best"),
        (("--quality", "best", "--imatrix", "auto"), "--quality best and --imatrix exclude each other"),
        (("--quality", "good", "--as-reference"), "--quality good and --as-reference exclude each other"),
        (("--quality", "good", "--remote"), "runs the model, which --remote does not download"),
        (("--quality", "nice"), "'nice' is not one of 'reference', 'good', 'best'"),
    ],
)
def test_wrong_options(quantize, words, message):
    status, said, errors = quantize(STORYTELLER, "--type", "Q4_0", *words)
    assert (status, said) == (2, "")
    assert message in errors


def test_gradients_are_used_where_they_can_be_had(quantize, tmp_path, monkeypatch):
    words = (STORYTELLER, "--type", "Q4_0", "--quality", "best", *FEW, "--overwrite")

    def unable(*given, **more):
        raise UnsupportedError("transformers does not run this model: why")

    monkeypatch.setattr("quantcli.quality.calibrate.is_installed", lambda: True)
    monkeypatch.setattr("quantcli.quality.calibrate.collect_gradients", unable)
    status, _, errors = quantize(*words)
    assert status == 0
    assert "warning: rounded without gradients: transformers does not run this model: why" in errors
    status, _, errors = quantize(*words, "--gradients", "none")
    assert (status, "gradients" in errors) == (0, False)
    with open_gguf(tmp_path / "storyteller-Q4_0.gguf") as file:
        assert file.get("quantize.calibration.gradients") == "none"
    status, _, errors = quantize(*words, "--gradients", "cuda")
    assert status == 1
    assert "error: transformers does not run this model: why" in errors


def test_gradients_by_torch(quantize, tmp_path):
    pytest.importorskip("torch", reason="gradients are torch's")
    pytest.importorskip("transformers", reason="the model is that of transformers")
    words = (STORYTELLER, "--type", "Q4_0", "--quality", "best", "--overwrite", "--moments", "moments", *FEW)
    assert quantize(*words)[0] == 0
    with_gradients = (tmp_path / "storyteller-Q4_0.gguf").read_bytes()
    assert (tmp_path / "moments" / "gradients.safetensors").exists()
    assert quantize(*words, "--gradients", "none")[0] == 0
    assert (tmp_path / "storyteller-Q4_0.gguf").read_bytes() != with_gradients


def test_a_text_shorter_than_two_chunks_and_one_that_is_not_utf_8(quantize, tmp_path):
    short, latin = tmp_path / "short.txt", tmp_path / "latin.txt"
    short.write_text("Once upon a time.")
    latin.write_bytes("café".encode("latin-1"))
    words = (STORYTELLER, "--type", "Q4_0", "--quality", "good", "--calibration")
    status, _, errors = quantize(*words, short)
    assert status == 1
    assert "short.txt: the text has" in errors
    status, _, errors = quantize(*words, latin)
    assert status == 2
    assert "is not UTF-8" in errors
    assert not list(tmp_path.glob("*.gguf"))
