"""Generation: why it stops, what it yields, and prompts that cannot be read."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from quantcli.core.errors import GenerationError
from quantcli.formats.gguf.reader import open_gguf
from quantcli.runner.cache import Cache
from quantcli.runner.model import Model
from quantcli.runner.session import Session
from quantcli.runner.text import generate
from quantcli.runner.text.generate import Generation, Limits, context_size
from quantcli.runner.text.sampling import Sampler
from quantcli.runner.text.sampling_options import SamplingOptions
from quantcli.runner.text.tokenizer import load_tokenizer

GREEDY = SamplingOptions(temperature=0)


@pytest.fixture(scope="module")
def parts(stories):
    with open_gguf(stories) as file:
        return Model(file), load_tokenizer(file.metadata)


def start(parts, prompt="Once upon a time", context=64, limit=None, options=GREEDY, **limits):
    model, tokenizer = parts
    ids = tokenizer.encode(prompt) if prompt else []
    session = Session(model, Cache(model.sizes, context))
    return Generation(session, tokenizer, ids, Sampler(options), Limits(limit, **limits))


def test_pieces_add_up_to_the_tokens_and_the_limit_holds(parts):
    generation = start(parts, limit=20)
    text = "".join(generation)
    assert text == ", there was a little girl named Lily. She loved to play outsid"
    assert len(generation.tokens) == 20
    assert generation.stopped == "limit"
    assert b"".join(parts[1].piece(token) for token in generation.tokens).decode() == text
    assert generation.prompt_tokens_per_second > 0
    assert generation.tokens_per_second > 0


def test_speeds_are_by_the_clock_that_does_not_count_compilation(parts, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(generate, "running_seconds", lambda: float(next(ticks)))
    generation = start(parts, limit=3)
    tuple(generation)
    assert generation.prompt_seconds == 1
    assert generation.seconds == 3


def test_a_full_context_ends_the_answer(parts):
    generation = start(parts, context=12)
    text = "".join(generation)
    assert generation.stopped == "context"
    assert len(generation.prompt) + len(generation.tokens) == 12
    assert text.startswith(", there")


def test_an_end_token_ends_the_answer_and_is_no_part_of_it(parts, monkeypatch):
    monkeypatch.setattr(parts[1], "end_of_generation", frozenset({261}))
    generation = start(parts, limit=20)
    assert "".join(generation) == ", there was"
    assert generation.stopped == "end"
    assert 261 not in generation.tokens


def test_a_model_that_may_not_end_goes_on(parts, monkeypatch):
    monkeypatch.setattr(parts[1], "end_of_generation", frozenset({261}))
    generation = start(parts, limit=20, ignore_end=True)
    assert "".join(generation).startswith(", there was")
    assert len(generation.tokens) == 20
    assert 261 not in generation.tokens


@pytest.mark.parametrize("stop", ["girl", "le gi", "l named Lily. She"])
def test_a_stop_string_ends_the_answer_wherever_tokens_cut_it(parts, stop):
    generation = start(parts, limit=40, stop=["nothing like it", stop])
    whole = ", there was a little girl named Lily. She loved"
    assert "".join(generation) == generation.text == whole[: whole.index(stop)]
    assert generation.stopped == "stop"


def test_what_only_begins_like_a_stop_string_is_shown(parts):
    generation = start(parts, limit=20, stop=["outside"])
    assert "".join(generation) == ", there was a little girl named Lily. She loved to play outsid"
    assert generation.stopped == "limit"


def test_a_control_token_ends_the_answer_where_it_is_a_stop_string(parts, monkeypatch):
    monkeypatch.setattr(parts[1], "end_of_generation", frozenset())
    session = start(parts, limit=0).session
    monkeypatch.setattr(session, "read", lambda tokens: np.eye(512, dtype=np.float32)[2])
    generation = Generation(session, parts[1], [1], Sampler(GREEDY), Limits(9, stop=["</s>"]))
    assert ("".join(generation), generation.tokens, generation.stopped) == ("", [], "stop")


def test_a_limit_of_nothing_only_reads(parts):
    generation = start(parts, limit=0)
    assert list(generation) == []
    assert generation.stopped == "limit"
    assert generation.tokens_per_second == 0


def test_a_seed_repeats_an_answer(parts):
    options = SamplingOptions(temperature=1.5, seed=3)
    answers = ["".join(start(parts, limit=15, options=options)) for _ in range(2)]
    assert answers[0] == answers[1]
    assert answers[0] != "".join(start(parts, limit=15, options=SamplingOptions(temperature=1.5, seed=4)))


def test_prompts_that_cannot_be_answered(parts):
    with pytest.raises(GenerationError, match="the prompt is empty"):
        list(start(parts, prompt=""))
    with pytest.raises(GenerationError, match="too many for an answer") as caught:
        list(start(parts, context=5))
    assert "--ctx" in caught.value.hint


def test_a_model_that_gives_no_numbers_says_so(parts, monkeypatch):
    model = parts[0]
    monkeypatch.setattr(model, "forward", lambda tokens, cache: np.full((1, model.vocabulary), np.nan, np.float32))
    with pytest.raises(GenerationError, match="not a number"):
        list(start(parts))


@pytest.mark.parametrize(
    ("trained", "prompt", "limit", "expected"),
    [
        (512, 10, None, 512), (131072, 10, 50, 4096), (131072, 10, None, 4106), (131072, 5000, 100, 5100),
        (131072, 9000, None, 13096), (512, 600, 5, 512),
    ],
)  # fmt: skip
def test_the_context_is_what_the_prompt_needs_within_what_was_trained(trained, prompt, limit, expected):
    assert context_size(trained, prompt, limit) == expected
