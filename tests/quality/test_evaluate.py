"""Perplexity and divergence: against figures recorded from llama.cpp, against llama.cpp, and texts that give none."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quantcli.conversion.convert import convert
from quantcli.core.errors import GenerationError, ModelError, UsageError
from quantcli.formats.gguf.arrays import pack_strings
from quantcli.formats.gguf.vocabulary import TOKENS
from quantcli.quality.evaluate import cut_text, evaluate, evaluate_all
from quantcli.runner.load import load_model

STORY = """\
Once upon a time there was a little dog named Max. Max lived in a small house near the big park. Every day he ran
to the park to play with his red ball. One day the ball rolled into the water. Max was sad and he did not know what
to do. A big bird saw him and asked, "Why are you sad?" Max said, "My ball is in the water." The bird was kind. It
flew over the water and took the ball. "Thank you!" said Max. "You are a good friend." From that day on Max and the
bird played in the park every day. They were very happy, and the ball never fell into the water again.
"""

# From the logits of llama.cpp (llama-cpp-python 0.3.36, one thread, F16 cache) on stories260K over STORY's three chunks of
# 64, by the formulas of its tools/perplexity/perplexity.cpp in float64: perplexity, its error, the mean divergence from F32
# and the share of the same top token.
RECORDED = {"F32": (5.42901, 1.50610, 0.0, 1.0), "Q4_0": (5.42376, 1.38290, 0.09067, 0.839)}


@pytest.fixture(scope="module")
def stories(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    for kind in RECORDED:
        convert(golden / "stories260K", kind, folder / f"{kind}.gguf")
    return {kind: load_model(folder / f"{kind}.gguf") for kind in RECORDED}


@pytest.mark.parametrize("kind", RECORDED)
def test_figures_are_those_of_the_reference(kind, stories):
    perplexity, stderr, divergence, same_top = RECORDED[kind]
    seen = []
    found = evaluate(stories[kind], STORY, context=64, base=stories["F32"], advance=lambda *done: seen.append(done))
    # Both round activations of Q4_0 to int8: on so few positions, codes that go the other way do not average out.
    share = 1e-3 if kind == "F32" else 1e-2
    assert found.perplexity == pytest.approx(perplexity, rel=share)
    assert found.stderr == pytest.approx(stderr, rel=share)
    assert (found.tokens, found.chunks) == (93, 3)
    assert found.divergence is not None
    assert found.divergence.base_perplexity == pytest.approx(RECORDED["F32"][0], rel=1e-3)
    assert found.divergence.mean == pytest.approx(divergence, rel=0.02, abs=1e-9)
    assert found.divergence.same_top == pytest.approx(same_top, abs=0.04)
    assert found.divergence.median <= found.divergence.p99 <= found.divergence.max
    assert [(done, total) for done, total, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert seen[-1][2] == pytest.approx(found.perplexity)


def test_pieces_of_a_chunk_make_no_difference(stories, monkeypatch):
    whole = evaluate(stories["F32"], STORY, context=64, chunks=2)
    monkeypatch.setattr("quantcli.quality.evaluate.LOGITS_AT_ONCE", 512 * 7)
    pieces = evaluate(stories["F32"], STORY, context=64, chunks=2)
    assert whole.tokens == pieces.tokens == 62
    assert pieces.perplexity == pytest.approx(whole.perplexity, rel=1e-4)
    assert whole.divergence is None


def test_models_together_have_the_figures_that_each_has_alone(stories):
    base, other = stories["F32"], stories["Q4_0"]
    calls = []
    forward = base.model.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base.model, "forward", lambda *words, **named: calls.append(1) or forward(*words, **named))
        found = evaluate_all([other, stories["Q4_0"], other], [("a", STORY), ("b", STORY[200:])], context=64, base=base)
    # One batch per chunk of the base, however many files there are.
    assert len(calls) == sum(result.evaluations[0].chunks for result in found)
    for text, result in zip((STORY, STORY[200:]), found, strict=True):
        alone = evaluate(other, text, context=64, base=base)
        assert result.evaluations == (alone,) * 3
        assert [(each.divergence.value, each.log_perplexity.value) for each in result.differences] == [(0, 0)] * 2
    pair = evaluate_all([base, other], [("a", STORY)], context=64, base=base)[0]
    difference = pair.differences[0]
    assert difference.divergence.value == pytest.approx(pair.evaluations[1].divergence.mean, rel=1e-6)
    expected = math.log(pair.evaluations[1].perplexity / pair.evaluations[0].perplexity)
    assert difference.log_perplexity.value == pytest.approx(expected)
    plain = evaluate_all([base, other], [("a", STORY)], context=64)[0].differences[0]
    assert plain.divergence is None
    assert plain.log_perplexity.value == pytest.approx(expected, rel=1e-4)


def test_bands_of_positions_average_to_the_figures(stories):
    found = evaluate_all([stories["Q4_0"]], [("a", STORY)], context=64, base=stories["F32"])[0]
    bands, whole = found.bands[0], found.evaluations[0]
    assert (bands[0].start, bands[-1].stop) == (32, 63)
    assert sum(band.predictions for band in bands) == whole.tokens
    weighted = [sum(band.predictions * value(band) for band in bands) / whole.tokens for value in
                (lambda band: band.loss.value, lambda band: band.divergence.value)]  # fmt: skip
    assert weighted == pytest.approx([math.log(whole.perplexity), whole.divergence.mean])


def test_a_short_text_is_named_before_anything_is_computed(stories, monkeypatch):
    monkeypatch.setattr(stories["F32"].model, "hidden", lambda *_: pytest.fail("a chunk was evaluated"))
    with pytest.raises(GenerationError, match=r"b\.txt: the text has \d+ tokens"):
        evaluate_all([stories["F32"]], [("a.txt: the text", STORY), ("b.txt: the text", "short")], context=64)


def test_each_chunk_begins_with_the_begin_token(stories):
    tokenizer = stories["F32"].tokenizer
    chunks = cut_text(tokenizer, STORY, 64, None)
    tokens = tokenizer.encode(STORY[:-1])
    assert [len(chunk) for chunk in chunks] == [64, 64, 64]
    assert [chunk[0] for chunk in chunks] == [tokenizer.bos] * 3
    assert [chunk[1:] for chunk in chunks] == [tokens[start + 1 : start + 64] for start in (0, 64, 128)]
    assert len(cut_text(tokenizer, STORY, 64, 2)) == 2


@pytest.mark.parametrize("limit", [1, 2, 5, 1000])
def test_a_few_chunks_are_the_first_of_all(stories, limit):
    tokenizer, text = stories["F32"].tokenizer, STORY * 9
    assert cut_text(tokenizer, text, 64, limit) == cut_text(tokenizer, text, 64, None)[:limit]


def test_texts_and_contexts_that_give_no_figure(stories):
    with pytest.raises(GenerationError, match=r"the text has 1 token, .* needs 128 or more") as caught:
        evaluate(stories["F32"], "", context=64)
    assert caught.value.hint is None
    with pytest.raises(GenerationError, match="needs 512 or more") as caught:
        evaluate(stories["F32"], STORY, context=256)
    assert "--ctx" in caught.value.hint
    with pytest.raises(UsageError, match="context of 3 tokens has no tokens to score"):
        evaluate(stories["F32"], STORY, context=3)


@pytest.mark.parametrize("change", [lambda texts: pack_strings([*texts[:-1], "another"]), lambda texts: texts[:-1]])
def test_another_vocabulary_is_no_base(stories, change):
    field = stories["F32"].metadata[TOKENS]
    changed = replace(field, content=change(field.elements()))
    other = replace(stories["F32"], path=Path("other.gguf"), metadata={**stories["F32"].metadata, TOKENS: changed})
    with pytest.raises(ModelError, match=r"F32.gguf and other.gguf have different vocabularies"):
        evaluate(stories["F32"], STORY, context=64, base=other)


def test_only_the_tokenizer_that_cuts_the_text_is_loaded(stories, tmp_path):
    first, second, base = (load_model(stories["F32"].path) for _ in range(3))
    evaluate_all([first, second], [("a", STORY)], context=64, chunks=1, base=base)
    assert ["tokenizer" in vars(each) for each in (first, second, base)] == [True, False, False]


def test_an_output_that_is_no_number_is_said(stories, monkeypatch):
    model = stories["Q4_0"].model
    monkeypatch.setattr(
        model, "forward", lambda tokens, cache, every=False: np.full((len(tokens), model.vocabulary), np.nan, np.float32)
    )
    with pytest.raises(GenerationError, match="not a number"):
        evaluate(stories["Q4_0"], STORY, context=64)


@pytest.mark.parametrize("both", [False, True], ids=["this", "both"])
def test_a_token_of_no_probability_is_an_error_where_the_base_expects_it(stories, monkeypatch, both):
    base, model = stories["F32"], stories["Q4_0"]
    absent = base.model.vocabulary - 1
    chunks = cut_text(base.tokenizer, STORY, 64, 1)
    assert absent not in chunks[0]

    def without(forward):
        def changed(tokens, cache, **options):
            logits = forward(tokens, cache, **options)
            logits[:, absent] = -np.inf
            return logits

        return changed

    def raised(tokens, cache, **options):
        logits = forward_of_base(tokens, cache, **options)
        logits[:, absent] = logits.max()
        return logits

    forward_of_base = base.model.forward
    monkeypatch.setattr(model.model, "forward", without(model.model.forward))
    monkeypatch.setattr(base.model, "forward", without(forward_of_base) if both else raised)
    if both:
        found = evaluate(model, STORY, context=64, chunks=1, base=base)
        assert 0 < found.divergence.mean < 1
    else:
        with pytest.raises(GenerationError, match="not a number"):
            evaluate(model, STORY, context=64, chunks=1, base=base)


# The reference itself


def reference_losses(llama_cpp, path, text, context, count):
    """-log p of every scored token, from llama.cpp's tokens and logits."""
    parameters = llama_cpp.llama_model_default_params()
    # Repacked weights crash on virtual machines that announce AMX and do not have it.
    parameters.use_extra_bufts = False
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = context
    settings.n_threads = settings.n_threads_batch = 1
    state = llama_cpp.llama_init_from_model(model, settings)
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    data = text.encode()
    ids = (llama_cpp.llama_token * (len(data) + 1))()
    total = llama_cpp.llama_tokenize(vocabulary, data, len(data), ids, len(ids), True, False)
    losses = []
    for start in range(0, min(total // context, count) * context, context):
        chunk = (llama_cpp.llama_token * context)(llama_cpp.llama_vocab_bos(vocabulary), *ids[start + 1 : start + context])
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(state), True)
        batch = llama_cpp.llama_batch_init(context, 0, 1)
        batch.n_tokens = context
        for place, token in enumerate(chunk):
            batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        assert llama_cpp.llama_decode(state, batch) == 0
        shape = (context, llama_cpp.llama_vocab_n_tokens(vocabulary))
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(state), shape).astype(np.float64)
        llama_cpp.llama_batch_free(batch)
        logits -= logits.max(1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(1, keepdims=True))
        scored = range(context // 2, context - 1)
        losses += [-logits[place, chunk[place + 1]] for place in scored]
    llama_cpp.llama_free(state)
    llama_cpp.llama_model_free(model)
    return np.array(losses)


@pytest.mark.parametrize(("kind", "share"), [("F32", 1e-3), ("Q8_0", 5e-3), ("Q4_K_M", 5e-3)])
def test_perplexity_is_that_of_the_reference_on_a_real_text(kind, share, shared, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="the reference implementation is not installed")
    path = tmp_path / "storyteller.gguf"
    convert(shared / "models" / "storyteller", kind, path)
    text = (shared / "corpora" / "tinystories-valid.txt").read_text(encoding="utf-8")[:40_000]
    losses = reference_losses(llama_cpp, path, text, 256, 8)
    found = evaluate(load_model(path), text, context=256, chunks=8)
    assert found.tokens == len(losses)
    assert found.perplexity == pytest.approx(math.exp(losses.mean()), rel=share)
    assert found.stderr == pytest.approx(found.perplexity * losses.std() / math.sqrt(len(losses) - 1), rel=0.01)
