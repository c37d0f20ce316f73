"""Answers by likelihood against transformers, and what differs from the base's answers."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import numpy as np
import pytest
from tiny_model import PROMPT, write_model

from quantcli.conversion.convert import convert
from quantcli.core.errors import GenerationError
from quantcli.quality.choices import Answers, Tokens, answer, ending_losses, evaluate_choices, tokenized
from quantcli.quality.questions import Question
from quantcli.runner.cache import Cache
from quantcli.runner.load import load_model

ROOT = Path(__file__).parents[2]
CASES = runpy.run_path(str(ROOT / "tests/golden/logit_cases.py"))["CASES"]

QUESTIONS = [
    Question(1, "Once upon a time there was a little", (" girl named Lily.", " tax on copper exports.", " boy."), 0),
    Question(2, "Tom and his mom went to the park. They saw a", (" big dog. The dog was nice.", " parliament."), 0),
    Question(3, "The sun was hot, so Lily wanted to", (" drink some water.", " sign a contract.", " ride to the moon."), 2),
    Question(4, "He was very happy", (" because he", " because he had found his ball, and he said thank you"), 1),
    Question(5, "The cat sat on the", (" mat", " mat and slept", " seventeen"), 1),
]


@pytest.fixture(scope="module")
def storyteller(tmp_path_factory):
    path = tmp_path_factory.mktemp("choices") / "storyteller.gguf"
    convert(ROOT / "examples/storyteller", "F32", path)
    return load_model(path)


@pytest.fixture(scope="module")
def coarse(tmp_path_factory):
    path = tmp_path_factory.mktemp("choices") / "coarse.gguf"
    convert(ROOT / "examples/storyteller", "Q2_K", path)
    return load_model(path)


def first_difference(sequences):
    """How many tokens all sequences begin with, at most all but the last of the shortest."""
    shared = 0
    while shared < min(map(len, sequences)) - 1 and len({tokens[shared] for tokens in sequences}) == 1:
        shared += 1
    return shared


def test_likelihoods_and_answers_are_those_of_transformers(storyteller):
    torch = pytest.importorskip("torch", reason="the model is run by torch")
    transformers = pytest.importorskip("transformers", reason="the model is run by transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(ROOT / "examples/storyteller", dtype=torch.float32).eval()
    by_sum, by_mean = [], []
    for question in QUESTIONS:
        sequences = [storyteller.tokenizer.encode(question.prompt + ending) for ending in question.endings]
        shared = first_difference(sequences)
        asked = tokenized(storyteller.tokenizer, question)
        assert [*map(list, asked.sequences)] == sequences
        assert asked.shared == shared
        expected = []
        for tokens in sequences:  # each by itself, without a cache
            with torch.no_grad():
                log_p = torch.log_softmax(model(torch.tensor([tokens])).logits[0].double(), 1).numpy()
            expected.append(-log_p[np.arange(shared - 1, len(tokens) - 1), tokens[shared:]])
        found = ending_losses(storyteller, asked, Cache(storyteller.model.sizes, max(map(len, sequences))))
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-3)
        by_sum.append(int(np.argmin([losses.sum() for losses in expected])))
        by_mean.append(int(np.argmin([losses.mean() for losses in expected])))
    answers = answer(storyteller, [tokenized(storyteller.tokenizer, question) for question in QUESTIONS])
    assert answers.by_sum.tolist() == by_sum
    assert answers.by_mean.tolist() == by_mean
    # The two ways to answer are told apart by question 4.
    assert by_sum != by_mean


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_a_shared_prompt_makes_no_difference(name, tmp_path):
    loaded = load_model(write_model(tmp_path, *CASES[name]))
    prompt = tuple(PROMPT.tolist())
    asked = Tokens(tuple((*prompt, *ending) for ending in ((9, 8, 7), (5,), (9, 11, 12, 13, 14))), len(prompt))
    found = ending_losses(loaded, asked, Cache(loaded.model.sizes, 40))
    for tokens, losses in zip(asked.sequences, found, strict=True):
        logits = loaded.model.forward(tokens[:-1], Cache(loaded.model.sizes, 40), every=True).astype(np.float64)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        places = np.arange(asked.shared - 1, len(tokens) - 1)
        np.testing.assert_allclose(losses, -log_p[places, np.array(tokens[asked.shared :])], rtol=1e-4, atol=1e-5)


def test_the_prompt_is_evaluated_once(storyteller, monkeypatch):
    read = []
    hidden, forward = storyteller.model.hidden, storyteller.model.forward
    monkeypatch.setattr(storyteller.model, "hidden", lambda ids, cache: read.append(len(ids)) or hidden(ids, cache))
    monkeypatch.setattr(
        storyteller.model, "forward", lambda ids, cache, **named: read.append(len(ids)) or forward(ids, cache, **named)
    )
    asked = tokenized(storyteller.tokenizer, QUESTIONS[0])
    answer(storyteller, [asked])
    assert read == [asked.shared - 1, *(len(tokens) - asked.shared for tokens in asked.sequences)]


def test_pieces_of_an_ending_make_no_difference(storyteller, monkeypatch):
    asked = tokenized(storyteller.tokenizer, QUESTIONS[3])
    whole = ending_losses(storyteller, asked, Cache(storyteller.model.sizes, 64))
    monkeypatch.setattr("quantcli.quality.choices.LOGITS_AT_ONCE", 3 * storyteller.model.vocabulary)
    for piece, losses in zip(ending_losses(storyteller, asked, Cache(storyteller.model.sizes, 64)), whole, strict=True):
        np.testing.assert_allclose(piece, losses, rtol=1e-4, atol=1e-5)


def test_accuracies_and_flips_are_counted(storyteller, monkeypatch):
    right = [question.answer for question in QUESTIONS]
    picks = {  # right answers: 0 0 2 1 1
        "base": Answers(np.array([0, 0, 1, 1, 0]), np.array([0, 0, 2, 1, 1])),
        "other": Answers(np.array([0, 1, 2, 1, 2]), np.array([0, 0, 2, 1, 1])),
    }
    assert right == [0, 0, 2, 1, 1]
    order = iter([picks["base"], picks["other"]])
    monkeypatch.setattr("quantcli.quality.choices.answer", lambda *_: next(order))
    base, other = evaluate_choices([storyteller], QUESTIONS, base=storyteller)
    assert (base.questions, base.accuracy.value.value, base.normalized.value.value) == (5, 0.6, 1)
    assert base.accuracy.value.stderr == pytest.approx(math.sqrt(0.6 * 0.4 / 4))
    assert base.accuracy.flips is None
    flips = other.accuracy.flips
    assert (flips.share.value, flips.lost, flips.won, flips.exchanged) == (0.6, 1, 1, 1)
    assert flips.share.stderr == pytest.approx(math.sqrt(0.6 * 0.4 / 4))
    assert other.normalized.flips.share.value == 0


def test_a_coarser_model_answers_too_and_progress_counts_everyone(storyteller, coarse):
    seen = []
    found = evaluate_choices([coarse, storyteller], QUESTIONS, base=storyteller, advance=lambda *done: seen.append(done))
    assert seen == [(number, 15) for number in range(1, 16)]
    assert len(found) == 3
    assert found[2].accuracy.flips.share.value == found[2].normalized.flips.share.value == 0
    assert found[2].accuracy.value == found[0].accuracy.value
    assert len(evaluate_choices([coarse], QUESTIONS[:1])) == 1


def test_what_cannot_be_scored_is_said(storyteller, monkeypatch):
    tokenizer = storyteller.tokenizer
    monkeypatch.setattr(tokenizer, "bos", None)
    monkeypatch.setattr(tokenizer, "encode", lambda text, add_special: [5, 6] if text.endswith("a") else [7, 6])
    with pytest.raises(GenerationError, match="question of line 9: no token comes before the endings"):
        tokenized(tokenizer, Question(9, "x", (" a", " b"), 0))
    nothing = np.full((2, storyteller.model.vocabulary), np.nan, np.float32)
    monkeypatch.setattr(storyteller.model, "forward", lambda tokens, cache, every: nothing[: len(tokens)])
    with pytest.raises(GenerationError, match="not a number"):
        answer(storyteller, [Tokens(((1, 5, 6), (1, 5, 7)), 2)])
