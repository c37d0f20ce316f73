"""The built-in texts, and what is measured of them: entropies, and figures by position."""

from __future__ import annotations

import json
import math
import unicodedata
from importlib.resources import files

import numpy as np
import pytest

from quantcli.conversion.convert import convert
from quantcli.core.errors import UsageError
from quantcli.quality.evaluate import cut_text, evaluate, evaluate_all
from quantcli.quality.subjects import SUBJECTS
from quantcli.runner.cache import Cache
from quantcli.runner.load import load_model

FOLDER = files("quantcli.quality") / "texts"
NAMES = [subject.name for subject in SUBJECTS]
SCRIPTS = {"chinese": "CJK", "russian": "CYRILLIC", "hindi": "DEVANAGARI"}


def script_of(letter: str) -> str:
    return unicodedata.name(letter).split()[0]


# The texts


def test_every_subject_has_a_file_and_every_file_a_subject():
    found = {place.name for place in (FOLDER / "subjects").iterdir()}
    assert found == {f"{name}.txt" for name in NAMES} | {"README.md"}
    assert len(set(NAMES)) == len({subject.title for subject in SUBJECTS}) == len(SUBJECTS) >= 10
    described = (FOLDER / "subjects" / "README.md").read_text(encoding="utf-8")
    assert all(f"| {name}.txt |" in described for name in NAMES)
    assert "CC0 1.0" in described


@pytest.mark.parametrize("subject", SUBJECTS, ids=NAMES)
def test_a_text_is_clean(subject):
    data = (FOLDER / "subjects" / f"{subject.name}.txt").read_bytes()
    assert 20_000 <= len(data) <= 40_000
    text = data.decode("utf-8")
    assert text == subject.text + "\n"
    assert unicodedata.is_normalized("NFC", text)
    assert not {mark for mark in text if unicodedata.category(mark) in ("Cc", "Co", "Cn", "Cs")} - {"\n", "\t"}
    assert "\ufeff" not in text and "\ufffd" not in text
    letters = [mark for mark in text if mark.isalpha()]
    own = sum(script_of(mark) == SCRIPTS.get(subject.name, "LATIN") for mark in letters)
    assert own / len(letters) > 0.98


def test_no_passage_is_in_two_texts():
    seen: dict[str, str] = {}
    for place in sorted(FOLDER.rglob("*.txt")):
        words = place.read_text(encoding="utf-8").split()
        for passage in {" ".join(words[start : start + 12]) for start in range(len(words) - 11)}:
            # Rows of numbers and brackets are no passages.
            if sum(map(str.isalpha, passage)) >= 40:
                assert seen.setdefault(passage, place.name) == place.name, passage


def test_the_tool_calls_are_valid_json():
    text = next(subject.text for subject in SUBJECTS if subject.name == "tools")
    documents = [line for line in text.split("\n") if line.startswith('{"') and line.endswith("}")]
    assert len(documents) > 40
    for line in documents:
        json.loads(line)


# What is measured

CONTEXT = 32


@pytest.fixture(scope="module")
def stories(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("subjects")
    for kind in ("F32", "Q4_0"):
        convert(golden / "stories260K", kind, folder / f"{kind}.gguf")
    return {kind: load_model(folder / f"{kind}.gguf") for kind in ("F32", "Q4_0")}


def log_probabilities(loaded, chunk):
    """log p, float64 (n, vocabulary), after each token but the last."""
    logits = loaded.model.forward(chunk[:-1], Cache(loaded.model.sizes, CONTEXT), every=True).astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def test_quarters_and_entropies_are_those_of_all_positions(stories):
    base, other = stories["F32"], stories["Q4_0"]
    text = SUBJECTS[0].text
    result = evaluate_all(
        [other, base], [("a", text), ("b", text)], context=CONTEXT, chunks=2, base=base, entropies=True, by_quarter=["b"]
    )
    plain, whole = result
    assert plain.quarters == ()
    alone = evaluate(other, text, context=CONTEXT, chunks=2, base=base)
    assert plain.evaluations[0].perplexity == pytest.approx(alone.perplexity)
    assert alone.divergence.base_entropy is None
    # The other figures of a text that is scored by position are those of the second half.
    for found, expected in zip(whole.evaluations, plain.evaluations, strict=True):
        assert (found.tokens, found.chunks) == (expected.tokens, expected.chunks) == (30, 2)
        assert found.perplexity == pytest.approx(expected.perplexity, rel=1e-5)
    assert whole.differences[0].log_perplexity.value == pytest.approx(plain.differences[0].log_perplexity.value, rel=1e-3)

    chunks = cut_text(base.tokenizer, text, CONTEXT, 2)
    tables = [(log_probabilities(base, chunk), log_probabilities(other, chunk), chunk) for chunk in chunks]
    for number, (quarter, places) in enumerate(zip(whole.quarters[0], np.split(np.arange(32), 4), strict=True)):
        rows = places[places < 31]
        losses = np.concatenate([-table[rows, np.array(chunk)[rows + 1]] for _, table, chunk in tables])
        entropies = np.concatenate([-(np.exp(table) * table).sum(1)[rows] for table, _, _ in tables])
        divergences = np.concatenate([(np.exp(p) * (p - q)).sum(1)[rows] for p, q, _ in tables])
        assert quarter.tokens == (16 if number < 3 else 14)
        assert quarter.perplexity == pytest.approx(math.exp(losses.mean()), rel=1e-4)
        found = quarter.divergence
        assert found.base_entropy.value == pytest.approx(entropies.mean(), rel=1e-4)
        assert found.mean == pytest.approx(divergences.mean(), rel=1e-3)
        assert found.relative.value == pytest.approx(divergences.mean() / entropies.mean(), rel=1e-3)


def test_a_context_without_quarters_is_refused(stories):
    text = [("a", SUBJECTS[0].text)]
    with pytest.raises(UsageError, match="too short to tell its quarters apart, expected 8"):
        evaluate_all([stories["F32"]], text, context=7, chunks=1, by_quarter=["a"])
    found = evaluate_all([stories["F32"]], text, context=8, chunks=1, by_quarter=["a"])[0]
    assert [quarter.tokens for quarter in found.quarters[0]] == [2, 2, 2, 1]
