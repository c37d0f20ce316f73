"""`quantize eval --subjects` and `--choices` as a user meets them; `quality` tests the figures themselves."""

from __future__ import annotations

import json

import pytest
from command_line import run_command

from quantcli.conversion.convert import convert
from quantcli.quality.subjects import SUBJECTS, Subject

TITLES = [subject.title for subject in SUBJECTS]
NAMES = [subject.name for subject in SUBJECTS]
FEW = ["--ctx", 16, "--chunks", 2]
QUESTION = {"prompt": "Once upon a time there was a little", "endings": [" girl.", " xylophone tax."], "answer": 0}


@pytest.fixture(scope="module")
def files(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval_subjects")
    for kind in ("F32", "Q8_0", "Q4_0"):
        convert(golden / "stories260K", kind, folder / f"{kind}.gguf")
    (folder / "story.txt").write_text("Once upon a time there was a dog named Max. He liked to play in the park. " * 8)
    (folder / "q.jsonl").write_text(json.dumps(QUESTION) + "\n" + json.dumps(QUESTION | {"answer": 1}) + "\n")
    return folder


def test_subjects_are_sorted_by_what_they_suffered(files, capsys):
    asked = ["eval", files / "Q4_0.gguf", files / "Q8_0.gguf", "--subjects", *FEW, "--base", files / "F32.gguf"]
    status, out, err = run_command(capsys, *asked, "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["results"] == found["differences"] == []
    rows = found["subjects"]
    paths = [str(files / name) for name in ("Q4_0.gguf", "Q8_0.gguf")]
    assert [(row["subject"], row["path"]) for row in rows] == [(name, path) for name in NAMES for path in paths]
    for row in rows:
        ratio = row["kl_divergence"]["mean"] / row["base_entropy"]["mean"]
        assert row["kl_divergence_relative"]["mean"] == pytest.approx(ratio)
        assert 0 < row["kl_divergence_relative"]["stderr"] < 1
        assert row["tokens"] == 14
        assert ("quarters" in row) == (row["subject"] == "long")
    quarters = rows[-1]["quarters"]
    assert [quarter["tokens"] for quarter in quarters] == [8, 8, 8, 6]
    assert quarters[0].keys() == rows[0].keys() - {"subject", "path"}
    assert [(row["subject"], row["first"], row["path"]) for row in found["subject_differences"]] == [
        (name, *paths) for name in NAMES
    ]

    status, out, err = run_command(capsys, *asked)
    assert (status, err) == (0, "")
    for path in paths:
        table = out[out.index(f"{path} by subject") :].splitlines()[1:]
        names = ["subject", "tokens", "perplexity", "KL divergence", "same top token", "base entropy", "KL / entropy"]
        assert table[0].split() == " ".join(names).split()
        shown = [next(title for title in TITLES if line.startswith(title + "  ")) for line in table[1 : 1 + len(TITLES)]]
        relative = {row["subject"]: row["kl_divergence_relative"]["mean"] for row in rows if row["path"] == path}
        order = sorted(SUBJECTS, key=lambda subject: relative[subject.name], reverse=True)
        assert shown == [subject.title for subject in order]
        places = out[out.index(f"{path} by position in the context, long document") :].splitlines()[2:6]
        assert [line.split("  ")[0] for line in places] == ["0 to 3", "4 to 7", "8 to 11", "12 to 14"]


def test_subjects_without_a_base_have_perplexities(files, capsys):
    asked = ["eval", files / "F32.gguf", "--subjects", *FEW]
    status, out, err = run_command(capsys, *asked)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[1].split() == ["subject", "tokens", "perplexity"]
    assert [line.split("  ")[0] for line in lines[2 : 2 + len(TITLES)]] == TITLES
    found = json.loads(run_command(capsys, *asked, "--json")[1])
    assert found.keys() == {"context", "seconds", "results", "differences", "subjects", "subject_differences"}
    assert found["subjects"][0].keys() == {"subject", "path", "perplexity", "stderr", "tokens", "chunks"}


def test_texts_subjects_and_questions_are_evaluated_in_one_run(files, capsys):
    text = ["eval", files / "Q4_0.gguf", "--text", files / "story.txt", *FEW, "--base", files / "F32.gguf"]
    asked = [*text, "--subjects", "--choices", files / "q.jsonl"]
    status, out, err = run_command(capsys, *asked, "--json")
    assert (status, err) == (0, "")
    found, alone = json.loads(out), json.loads(run_command(capsys, *text, "--json")[1])
    # The fields of the text are those of a run without the rest.
    assert {key: value for key, value in found.items() if key in alone} | {"seconds": 0} == alone | {"seconds": 0}
    assert found.keys() - alone.keys() == {"subjects", "subject_differences", "choices"}
    status, out, err = run_command(capsys, *asked)
    assert (status, err) == (0, "")
    assert out.startswith("Perplexity")
    assert out.index("by subject") < out.index("by position") < out.index("q.jsonl: 2 questions, flips of")


def test_questions_are_a_row_per_file(files, capsys):
    asked = ["eval", files / "Q4_0.gguf", files / "Q8_0.gguf", "--choices", files / "q.jsonl"]
    status, out, err = run_command(capsys, *asked, "--base", files / "F32.gguf", "--json")
    assert (status, err) == (0, "")
    rows = json.loads(out)["choices"]
    assert [row["path"] for row in rows] == [str(files / f"{kind}.gguf") for kind in ("F32", "Q4_0", "Q8_0")]
    assert rows[0].keys() == {"choices", "path", "questions", "accuracy", "normalized_accuracy"}
    assert all(row["accuracy"]["value"] == 0.5 for row in rows)
    assert "flipped" not in rows[0]["accuracy"]
    assert rows[1]["accuracy"]["flipped"] == {
        "share": 0, "stderr": 0, "right_to_wrong": 0, "wrong_to_right": 0, "wrong_to_wrong": 0,
    }  # fmt: skip
    status, out, err = run_command(capsys, *asked, "--base", files / "F32.gguf")
    assert [line.split()[0] for line in out.splitlines()[2:]] == [row["path"] for row in rows]
    assert out.count("50.00% ± 50.00%") == 6
    status, out, err = run_command(capsys, *asked)
    assert (status, err) == (0, "")
    assert "flipped" not in out
    assert len(out.splitlines()) == 4


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ([], 2, "nothing to evaluate, expected --text, --subjects or --choices"),
        (["--choices", "q.jsonl", "--plot"], 2, "it needs --text or --subjects"),
        (["--choices", "none.jsonl"], 1, "none.jsonl: No such file"),
        (["--choices", "story.txt"], 1, "story.txt: line 1 is not valid JSON"),
        (["--subjects", "--ctx", 4], 2, "too short to tell its quarters apart"),
        (["--subjects", "--ctx", 100_000], 1, "the built-in text 'prose' has "),
    ],
)
def test_bad_requests_end_with_one_line(files, capsys, monkeypatch, words, status, message):
    monkeypatch.chdir(files)
    found, out, err = run_command(capsys, "eval", "F32.gguf", *words)
    assert (found, out) == (status, "")
    assert message in next(line for line in err.splitlines() if line.startswith("error: "))


def test_a_subject_reads_its_own_file():
    assert Subject("law", "law").text.startswith("AN ACT\n")
