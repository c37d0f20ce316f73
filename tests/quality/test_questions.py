"""Questions of published layouts, and lines that are none."""

from __future__ import annotations

import json

import pytest

from quantcli.core.errors import FormatError
from quantcli.quality.questions import Question, read_questions

HELLASWAG = {
    "ind": 24, "activity_label": "Roof shingle removal", "ctx_a": "A man is sitting on a roof.", "ctx_b": "he",
    "ctx": "A man is sitting on a roof. he", "split": "val", "split_type": "indomain", "label": "3", "source_id": "x",
    "endings": [
        "is using wrap to wrap a pair of skis.", "is ripping level tiles off.", "is holding a rubik's cube.",
        "starts pulling up roofing on a roof.",
    ],
}  # fmt: skip
MMLU = {"question": "Find all c such that ...", "subject": "abstract_algebra", "choices": ["0", "1", "2", "3"], "answer": 1}
PLAIN = {"prompt": "Q: 2+2?\nA:", "endings": [" 4", " 5"], "answer": 0}


def written(path, *lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_each_layout_is_put_to_the_model_as_is_usual(tmp_path):
    found = read_questions(written(tmp_path / "q.jsonl", HELLASWAG, "\n", MMLU, PLAIN))
    # HellaSwag: the activity, the context, and an ending after a space, as llama-perplexity's data set has them.
    assert found[0] == Question(
        1,
        "Roof shingle removal: A man is sitting on a roof. he",
        tuple(f" {ending}" for ending in HELLASWAG["endings"]),
        3,
    )
    # MMLU: the letters of the choices are the endings.
    assert found[1] == Question(
        3,
        "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
        "Find all c such that ...\nA. 0\nB. 1\nC. 2\nD. 3\nAnswer:",
        (" A", " B", " C", " D"),
        1,
    )
    assert found[2] == Question(4, PLAIN["prompt"], (" 4", " 5"), 0)


def test_markup_of_wikihow_is_removed(tmp_path):
    context = "[header] How to rest [title] Lie down. [step] Close  your eyes."
    line = {"ctx": context, "endings": ["a [substeps] b", "c"], "label": 0}
    question = read_questions(written(tmp_path / "q.jsonl", line))[0]
    assert question.prompt == " How to rest. Lie down. Close your eyes."
    assert question.endings == (" a b", " c")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not valid JSON"),
        ("[1]\n", "line 2 is a JSON array, expected an object"),
        ('{"a": 1}\n', r"line 2 is no question, expected the keys ctx, endings, label \(HellaSwag\); or question, choices"),
        (HELLASWAG | {"label": "4"}, "line 2: 'label' is '4', expected the number of the right choice, 0 to 3"),
        (HELLASWAG | {"label": ""}, "line 2: 'label' is ''"),
        (HELLASWAG | {"label": -1}, "line 2: 'label' is -1"),
        (MMLU | {"answer": True}, "line 2: 'answer' is True"),
        (MMLU | {"answer": 1.0}, r"line 2: 'answer' is 1\.0"),
        (MMLU | {"answer": "B"}, "line 2: 'answer' is 'B'"),
        (MMLU | {"choices": ["a"]}, "line 2: 'choices' has a length of 1, expected 2 to 26"),
        (MMLU | {"choices": ["a"] * 27}, "line 2: 'choices' has a length of 27"),
        (MMLU | {"choices": "ab"}, "line 2: 'choices' is 'ab', expected a list of texts"),
        (PLAIN | {"endings": ["a", " "]}, "line 2: 'endings' is "),
        (PLAIN | {"endings": ["a", None]}, "line 2: 'endings' is "),
        (PLAIN | {"prompt": " "}, "line 2: 'prompt' is ' ', expected a text"),
        (PLAIN | {"prompt": 3}, "line 2: 'prompt' is 3"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = written(tmp_path / "q.jsonl", PLAIN, line)
    with pytest.raises(FormatError, match=message) as caught:
        read_questions(path)
    assert str(caught.value).startswith(f"{path}: line 2")
    assert "\n" not in str(caught.value)


def test_the_test_split_of_hellaswag_is_explained(tmp_path):
    with pytest.raises(FormatError) as caught:
        read_questions(written(tmp_path / "q.jsonl", HELLASWAG | {"label": ""}))
    assert "validation split" in caught.value.hint


def test_files_without_questions(tmp_path):
    with pytest.raises(FormatError, match="no questions"):
        read_questions(written(tmp_path / "q.jsonl", "\n \n"))
    with pytest.raises(FormatError, match="No such file"):
        read_questions(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe4"}\n')
    with pytest.raises(FormatError, match="line 1 is not valid JSON"):
        read_questions(tmp_path / "latin.jsonl")
