"""Embeddings: every encoder's against llama.cpp's of the same tiny files, and how they become one vector."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from changed_file import write_changed
from tiny_model import PROMPT, write_model

from quantcli.core.errors import GenerationError, UnsupportedError, UsageError
from quantcli.formats.gguf.spec import u32
from quantcli.runner.cache import Cache
from quantcli.runner.embed import embed, pooling_of
from quantcli.runner.load import load_model
from quantcli.runner.pooling import POOLINGS

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = runpy.run_path(str(GOLDEN / "embedding_cases.py"))["CASES"]


@pytest.fixture(scope="module")
def goldens():
    with np.load(GOLDEN / "embeddings.npz") as opened:
        return dict(opened)


@pytest.mark.parametrize("name", CASES)
def test_rows_of_tokens_are_those_of_the_reference(name, goldens, tmp_path):
    loaded = load_model(write_model(tmp_path, *CASES[name]))
    model, expected = loaded.model, goldens[name]
    found = model.hidden(PROMPT.tolist(), Cache(model.sizes, len(PROMPT), "f32"))
    assert found.shape == (len(PROMPT), 64)
    # Both round activations to int8 for packed types; GELU llama.cpp looks up in a table of halves.
    share = 0.02 if CASES[name][3] != "F32" else 1e-3 if "gelu" in model.graph.activation else 1e-5
    assert np.abs(found[:, ::4] - expected).max() <= share * np.ptp(expected)


def test_an_encoder_says_nothing(tmp_path):
    model = load_model(write_model(tmp_path, *CASES["bert"])).model
    with pytest.raises(UnsupportedError, match="'bert' is an encoder") as caught:
        model.forward([5, 6], Cache(model.sizes, 4))
    assert "quantize embed" in caught.value.hint


def test_a_decoder_has_the_same_rows_however_long_the_text(stories, monkeypatch):
    loaded = load_model(stories)
    tokens = loaded.tokenizer.encode("Once upon a time there was a little dog")
    sizes = loaded.model.sizes
    whole = loaded.model.hidden(tokens, Cache(sizes, 32, "f32"))
    # What is read from them are the logits.
    logits = loaded.model.forward(tokens, Cache(sizes, 32, "f32"), every=True)
    np.testing.assert_allclose(loaded.model.output(whole), logits, rtol=1e-5, atol=1e-4)
    monkeypatch.setattr("quantcli.runner.model.BATCH", 4)
    parts = loaded.model.hidden(tokens, Cache(sizes, 32, "f32"))
    np.testing.assert_allclose(parts, whole, atol=2e-5 * np.ptp(whole))


def test_rows_are_pooled_and_normalized_as_asked(stories):
    loaded = load_model(stories)
    (rows,) = embed(loaded, ["Once upon a time"], pooling="none", normalize=False)
    assert rows.tokens == [1, 403, 407, 261, 378]
    assert rows.rows.shape == (5, 64)
    expected = {"mean": rows.rows.mean(0), "cls": rows.rows[0], "last": rows.rows[-1]}
    for pooling, row in expected.items():
        (plain,) = embed(loaded, ["Once upon a time"], pooling=pooling, normalize=False)
        np.testing.assert_allclose(plain.rows, row[None], rtol=1e-6, atol=1e-6)  # sums in float32, in another order
        (unit,) = embed(loaded, ["Once upon a time"], pooling=pooling)
        np.testing.assert_allclose(unit.rows, row[None] / np.linalg.norm(row), rtol=1e-5)
    (each,) = embed(loaded, ["Once upon a time"], pooling="none")
    np.testing.assert_allclose(np.linalg.norm(each.rows, axis=1), np.ones(5), rtol=1e-6)
    one, two = embed(loaded, ["Once", "Once upon"])
    assert len(one.tokens) < len(two.tokens)


def test_the_file_says_how_to_pool(stories, tmp_path):
    assert pooling_of(load_model(stories)) == "mean"
    for number, name in enumerate(POOLINGS):
        path = write_changed(stories, tmp_path / f"{name}.gguf", {"llama.pooling_type": u32(number)})
        assert pooling_of(load_model(path)) == name
    reranker = load_model(write_changed(stories, tmp_path / "rank.gguf", {"llama.pooling_type": u32(4)}))
    with pytest.raises(UnsupportedError, match="pooling_type is 4, expected one of none, mean, cls, last"):
        pooling_of(reranker)


def test_texts_that_have_no_embedding(stories):
    loaded = load_model(stories)
    with pytest.raises(UsageError, match="unknown pooling 'max'"):
        list(embed(loaded, ["a"], pooling="max"))
    with pytest.raises(GenerationError, match="the text has 5 tokens, and the context is 4"):
        list(embed(loaded, ["Once upon a time"], context=4))
