"""`quantize eval` of embedding models and rerankers as a user meets it; `quality` tests the figures themselves."""

from __future__ import annotations

import json

import pytest
from changed_file import write_changed
from command_line import run_command
from tiny_encoder import text_of_lines, write_encoder

from quantcli.conversion.convert import convert
from quantcli.formats.gguf.spec import u32
from quantcli.quality.subjects import SUBJECTS

FIGURES = {"path", "lines", "cosine", "same_nearest", "same_nearest_stderr", "rank_correlation"}
SCORES = {"path", "lines", "scores", "rms_change", "base_deviation", "same_best", "same_best_stderr", "rank_correlation"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval_embeddings")
    for kind in ("F32", "Q8_0", "Q4_0"):
        write_encoder(folder, kind).rename(folder / f"{kind}.gguf")
        write_encoder(folder, kind, checkpoint="bert-reranker").rename(folder / f"rank-{kind}.gguf")
    (folder / "lines.txt").write_text(text_of_lines(20))
    (folder / "more.txt").write_text(text_of_lines(9).replace("\n", "\r\n") + "\r\n")
    return folder


def test_one_file_and_one_text_are_one_document(files, capsys):
    asked = ["eval", files / "Q4_0.gguf", "--base", files / "F32.gguf", "--text", files / "lines.txt"]
    status, out, err = run_command(capsys, *asked, "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found.keys() == FIGURES | {"base", "context", "seconds"}
    assert found["cosine"].keys() == {"mean", "stderr", "p5", "p1", "min"}
    assert found["lines"] == 20
    assert found["cosine"]["min"] <= found["cosine"]["p1"] <= found["cosine"]["p5"] <= found["cosine"]["mean"] < 1
    status, out, err = run_command(capsys, *asked)
    assert (status, err) == (0, "")
    assert [line.split("  ")[0] for line in out.splitlines()] == ["Cosine", "Same nearest", "Rank correlation", "Compared"]
    assert f"mean {found['cosine']['mean']:.6f} ± {found['cosine']['stderr']:.6f}" in out
    status, out, _ = run_command(capsys, *asked, "--json", "--chunks", 7)
    assert (status, json.loads(out)["lines"]) == (0, 7)


def test_several_files_and_texts_are_rows(files, capsys):
    asked = ["eval", files / "Q8_0.gguf", files / "Q4_0.gguf", "--base", files / "F32.gguf"]
    asked += ["--text", files / "lines.txt", "--text", files / "more.txt"]
    status, out, err = run_command(capsys, *asked, "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found.keys() == {"base", "context", "seconds", "results", "differences"}
    assert [(row["text"][-8:], row["path"][-9:], row["lines"]) for row in found["results"]] == [
        (text, path, lines) for text, lines in (("ines.txt", 20), ("more.txt", 9)) for path in ("Q8_0.gguf", "Q4_0.gguf")
    ]
    assert all(row.keys() == FIGURES | {"text"} for row in found["results"])
    first, second = (row["cosine"]["mean"] for row in found["results"][:2])
    change = found["differences"][0]["cosine"]
    assert change["mean"] == pytest.approx(second - first)
    assert change["interval_95"][0] < change["mean"] < change["interval_95"][1] < 0
    status, out, err = run_command(capsys, *asked)
    assert (status, err) == (0, "")
    assert "lines.txt: 20 different lines, embeddings compared with " in out
    assert out.count("with 95 % confidence intervals") == 2
    assert out.count("rank correlation") == 4


def test_subjects_are_sorted_by_what_they_suffered(files, capsys):
    asked = ["eval", files / "Q4_0.gguf", "--base", files / "F32.gguf", "--subjects", "--chunks", 4]
    status, out, _ = run_command(capsys, *asked, "--json")
    assert status == 0
    found = json.loads(out)
    assert [row["subject"] for row in found["subjects"]] == [subject.name for subject in SUBJECTS]
    status, out, _ = run_command(capsys, *asked)
    assert status == 0
    order = sorted(found["subjects"], key=lambda row: row["cosine"]["mean"])
    titles = {subject.name: subject.title for subject in SUBJECTS}
    shown = [line.split("  ")[0] for line in out.splitlines()[2:]]
    assert shown == [titles[row["subject"]] for row in order]


def test_a_decoder_that_pools_is_an_embedding_model(golden, files, tmp_path, capsys):
    convert(golden / "stories260K", "F32", tmp_path / "F32.gguf")
    path = write_changed(tmp_path / "F32.gguf", tmp_path / "last.gguf", {"llama.pooling_type": u32(3)})
    (tmp_path / "story.txt").write_text("Once upon a time\nthere was a dog\nnamed Max\nin the park\n")
    asked = ["eval", path, "--text", tmp_path / "story.txt", "--json", "--base"]
    status, out, err = run_command(capsys, *asked, path)
    assert (status, err) == (0, "")
    assert json.loads(out)["cosine"]["mean"] == pytest.approx(1)
    status, _, err = run_command(capsys, *asked, tmp_path / "F32.gguf")
    assert status == 1
    assert "different models: pooling 'last' and pooling 'mean'" in err
    plain = write_changed(path, tmp_path / "none.gguf", {"llama.pooling_type": u32(0)})
    status, out, err = run_command(capsys, "eval", plain, *asked[2:-1], "--ctx", 4)
    assert (status, err) == (0, "")
    assert "perplexity" in json.loads(out)


def test_a_reranker_is_compared_by_its_scores(files, capsys):
    asked = ["eval", files / "rank-Q8_0.gguf", files / "rank-Q4_0.gguf", "--base", files / "rank-F32.gguf"]
    asked += ["--text", files / "lines.txt", "--subjects", "--chunks", 6]
    status, out, err = run_command(capsys, *asked, "--json")
    assert status == 0
    found = json.loads(out)
    assert [(row["lines"], row["scores"]) for row in found["results"]] == [(6, 5)] * 2
    assert all(row.keys() == SCORES | {"text"} for row in found["results"])
    assert all(row.keys() == SCORES | {"subject"} for row in found["subjects"])
    good, bad = found["results"]
    assert 0 < good["rms_change"]["mean"] < bad["rms_change"]["mean"]
    assert 0 < good["base_deviation"] == bad["base_deviation"]
    change = found["differences"][0]["rms_change"]
    assert change["mean"] == pytest.approx(bad["rms_change"]["mean"] - good["rms_change"]["mean"])
    status, out, err = run_command(capsys, *asked)
    assert status == 0
    assert "6 different lines, scores compared with " in out
    assert out.count("base deviation") == 3
    status, out, err = run_command(capsys, *asked[:2], *asked[3:-3])
    assert (status, err) == (0, "")
    assert [line.split("  ")[0] for line in out.splitlines()] == ["RMS change", "Same best", "Rank correlation", "Compared"]
    status, _, err = run_command(capsys, *asked[:3], "--text", files / "lines.txt")
    assert status == 2
    assert "is a classifier: its scores are compared with those of another file" in err


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--text", "lines.txt"], 2, "is an embedding model: its embeddings are compared with those of another file"),
        (["--base", "F32.gguf"], 2, "nothing to evaluate"),
        (["--base", "F32.gguf", "--text", "lines.txt", "--plot"], 2, "it predicts no tokens, which --plot needs"),
        (["--base", "F32.gguf", "--choices", "q.jsonl"], 2, "it predicts no tokens, which --choices needs"),
        (["--base", "F32.gguf", "--text", "lines.txt", "--chunks", "2"], 1, "and a comparison needs 3 or more"),
        (["--base", "other.gguf", "--text", "lines.txt"], 1, "different models: 2 layers and 3 layers"),
    ],
)
def test_bad_requests_end_with_one_line(files, capsys, monkeypatch, words, status, message):
    monkeypatch.chdir(files)
    (files / "q.jsonl").write_text('{"prompt": "a", "endings": ["b", "c"], "answer": 0}\n')
    write_changed(files / "F32.gguf", files / "other.gguf", {"bert.block_count": u32(3)})
    found, out, err = run_command(capsys, "eval", "Q8_0.gguf", *words)
    assert (found, out) == (status, "")
    assert err.startswith("error: ")
    assert message in err.splitlines()[0]


def test_a_quantized_base_is_a_warning(files, capsys):
    asked = ["eval", files / "F32.gguf", "--text", files / "lines.txt", "--base", files / "Q8_0.gguf"]
    status, _, err = run_command(capsys, *asked)
    assert status == 0
    assert "the base is itself quantized" in err
