"""What a cache keeps: small windows, packed types, what can be forgotten and what can move."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from quantcli.conversion.convert import convert
from quantcli.core.errors import GenerationError, UnsupportedError, UsageError
from quantcli.runner.cache import NOTHING, Cache, LayerCache, LayerMemory, View, hadamard
from quantcli.runner.load import load_model
from quantcli.runner.session import Session

RANDOM = np.random.default_rng(3)
PROMPT = [1, 403, 407, 261, 378]  # "Once upon a time"
SIZES = LayerMemory(kv_heads=2, key_size=16, value_size=16, rotated="first")


@pytest.fixture(scope="module")
def loaded(stories):
    return load_model(stories)


@pytest.fixture(scope="module")
def wide_heads(golden, tmp_path_factory):
    """A model whose heads have 64 numbers, so that packed caches turn them."""
    path = tmp_path_factory.mktemp("cache") / "storyteller.gguf"
    convert(golden.parents[1] / "examples" / "storyteller", "F32", path)
    return load_model(path)


def layer_of(chunked: bool, window: int, monkeypatch) -> tuple[LayerCache, LayerCache, View]:
    """A layer's cache that keeps a window, one that keeps all, and what both are asked for."""
    monkeypatch.setattr("quantcli.runner.cache.BATCH", 4)
    sizes = replace(SIZES, window=window, chunked=chunked)
    one = np.float32(1)
    view = View(one, np.float32(0), 0 if chunked else window, window if chunked else 0, 0, NOTHING, NOTHING)
    return LayerCache(sizes, 100, "f32"), LayerCache(replace(sizes, window=0), 100, "f32"), view


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("window", [1, 5, 16])
def test_a_window_gives_what_the_whole_past_gives_and_stays_small(chunked, window, monkeypatch):
    small, whole, view = layer_of(chunked, window, monkeypatch)
    assert small.keys.shape[1] == window - 1 + 8
    position = 0
    while position < 90:
        count = int(RANDOM.integers(1, 5))
        key, value = (RANDOM.normal(size=(count, 2, 16)).astype(np.float32) for _ in range(2))
        query = RANDOM.normal(size=(count, 4, 16)).astype(np.float32)
        outs = []
        for layer in (small, whole):
            layer.store(position, key, value)
            out = np.empty_like(query)
            layer.attend(query, position, view, out)
            outs.append(out)
        np.testing.assert_array_equal(*outs)
        position += count
    assert small.first > 0
    assert small.holds(position)
    assert not small.holds(small.first - 1)
    assert small.nbytes(position) <= small.keys.nbytes + small.values.nbytes < whole.nbytes(position)


def test_a_cache_goes_back_to_what_it_holds_or_to_nothing(loaded):
    tokens = [*PROMPT, 432, 383, 286]
    cache = Cache(loaded.model.sizes, 16, "f32")
    first = loaded.model.forward(tokens, cache)
    assert cache.rewind(5) == cache.length == 5
    np.testing.assert_allclose(loaded.model.forward(tokens[5:], cache), first, rtol=1e-4, atol=1e-4)
    layer = cache.layers[2]
    layer.first = 4  # as a window that has moved
    layer.sizes = replace(layer.sizes, window=2)
    assert cache.rewind(5) == 5
    assert cache.rewind(4) == 0
    assert cache.layers[2].first == 0


def test_states_know_one_number_of_tokens(loaded):
    sizes = loaded.model.sizes
    memory = (replace(sizes.memory[0], states=((2, 3),)), *sizes.memory[1:])
    cache = Cache(SimpleNamespace(memory=memory), 16)
    cache.states[0][0][...] = 7
    cache.length = 5
    assert cache.rewind(5) == 5
    assert cache.states[0][0].all()
    assert cache.rewind(4) == 0
    assert not cache.states[0][0].any()


def test_hadamard_matrices_are_their_own_inverse():
    assert hadamard(80, False) is None
    assert hadamard(8, True) is None
    assert hadamard(0, True) is None
    for size, small, n in ((64, False, 64), (256, False, 256), (256, True, 64), (192, False, 64)):
        matrix = hadamard(size, small)
        assert matrix.shape == (n, n)
        assert matrix.dtype == np.float32
        np.testing.assert_allclose(matrix @ matrix, np.eye(n), atol=1e-6)


def logits_of(loaded, tokens, cache_type):
    cache, forward = Cache(loaded.model.sizes, len(tokens), cache_type), loaded.model.forward
    return np.concatenate([forward(tokens[:30], cache, every=True), *(forward([token], cache) for token in tokens[30:])])


# How far logits move, as a share of their range (root mean square): llama.cpp's own q8_0 and q4_0 caches move those of the
# model with wide heads by 0.0004 and 0.0056 on a story.
@pytest.mark.parametrize(("cache_type", "share"), [("f16", 2e-4), ("q8_0", 4e-3), ("q4_0", 0.05)])
def test_smaller_types_cost_little(wide_heads, loaded, cache_type, share):
    for model in (wide_heads, loaded):
        tokens = RANDOM.integers(3, model.model.vocabulary, 60).tolist()
        plain, packed = (logits_of(model, tokens, kind) for kind in ("f32", cache_type))
        moved = np.sqrt(((packed - plain) ** 2).mean()) / np.ptp(plain)
        assert 0 < moved < (share if model is loaded else share / 4)
    sizes = wide_heads.model.sizes
    bits = {"f16": 16, "q8_0": 8.5, "q4_0": 4.5}[cache_type]
    cache = Cache(sizes, 100, cache_type)
    cache.length = 10
    assert cache.nbytes == sizes.layers * 2 * 2 * 64 * 10 * bits / 8


def test_caches_have_known_types_and_some_room(loaded):
    with pytest.raises(UsageError, match="unknown cache type 'q3', expected one of f32, f16, q8_0, q4_0"):
        Cache(loaded.model.sizes, 8, "q3")
    with pytest.raises(UsageError, match="context of 0 tokens"):
        Cache(loaded.model.sizes, 0)
    with pytest.raises(GenerationError, match="out of memory for a context of 9000000000000000 tokens") as caught:
        Cache(loaded.model.sizes, 9_000_000_000_000_000)
    assert "--ctx" in caught.value.hint


# Shifting


def greedy(session: Session, prompt: list[int], count: int) -> list[int]:
    logits, tokens = session.read(session.start(prompt)), []
    for _ in range(count):
        tokens.append(int(logits.argmax()))
        logits = session.read(tokens[-1:])
    return tokens


@pytest.mark.parametrize("cache_type", ["f32", "q8_0"])
def test_in_the_first_layer_what_moved_is_as_if_it_had_been_read_there(wide_heads, cache_type):
    model = wide_heads.model
    tokens = RANDOM.integers(3, model.vocabulary, 20).tolist()
    session = Session(model, Cache(model.sizes, 20, cache_type), keep=3)
    session.read(tokens)
    session.read([tokens[0]])
    assert session.tokens == [*tokens[:3], *tokens[11:], tokens[0]]
    fresh = Cache(model.sizes, 20, cache_type)
    model.forward(session.tokens, fresh)
    found, expected = (cache.layers[0] for cache in (session.cache, fresh))
    share = 1e-5 if cache_type == "f32" else 0.03
    for moved, read in zip(found.stored(0, 13), expected.stored(0, 13), strict=True):
        assert np.abs(moved - read).max() <= share * np.ptp(read)


@pytest.mark.parametrize("keep", [0, 2, 12])
def test_a_window_moves_as_the_whole_past_does(keep, monkeypatch):
    small, whole, view = layer_of(False, 5, monkeypatch)
    key, value = (RANDOM.normal(size=(30, 2, 16)).astype(np.float32) for _ in range(2))
    query = RANDOM.normal(size=(1, 4, 16)).astype(np.float32)

    def negate(keys):
        keys *= -1

    outs = []
    for layer in (small, whole):
        for start in range(0, 30, 3):
            layer.store(start, key[start : start + 3], value[start : start + 3])
        layer.cut(keep, 8, 30, negate)
        layer.store(22, key[:1], value[:1])
        out = np.empty_like(query)
        layer.attend(query, 22, view, out)
        outs.append(out)
    np.testing.assert_array_equal(*outs)
    assert small.first > keep or keep == 12


def test_a_window_within_what_is_forgotten_sees_what_is_left(monkeypatch):
    small, _, view = layer_of(False, 16, monkeypatch)
    key, value = (RANDOM.normal(size=(30, 2, 16)).astype(np.float32) for _ in range(2))
    for start in range(0, 30, 3):
        small.store(start, key[start : start + 3], value[start : start + 3])
    before = small.first
    assert before > 0
    small.cut(0, before + 8, 30, None)
    assert small.first == 0
    out = np.empty((1, 4, 16), np.float32)
    small.store(30 - before - 8, key[:1], value[:1])
    small.attend(np.ones((1, 4, 16), np.float32), 30 - before - 8, view, out)
    np.testing.assert_array_equal(small.keys[:, : 22 - before].swapaxes(0, 1), key[before + 8 :])
    assert np.isfinite(out).all()


def test_a_model_that_learned_its_positions_cannot_shift(loaded, monkeypatch):
    cache = Cache(loaded.model.sizes, 8)
    with pytest.raises(UsageError, match="a context of 8 tokens cannot be shifted and keep 7"):
        Session(loaded.model, cache, keep=7)
    monkeypatch.setattr(loaded.model, "learned_positions", loaded.model.embedding)
    with pytest.raises(UnsupportedError, match="'llama' cannot be shifted: learned position embeddings"):
        Session(loaded.model, cache, keep=1)


def test_an_interrupted_shift_forgets_all(loaded, monkeypatch):
    session = Session(loaded.model, Cache(loaded.model.sizes, 8), keep=1)
    session.read([1, 2, 3, 4, 5, 6, 7, 8])

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(LayerCache, "cut", interrupt)
    with pytest.raises(KeyboardInterrupt):
        session.read([9])
    assert session.tokens == []


def test_shifted_answers_are_those_of_the_reference(loaded):
    """llama.cpp in the steps of its own context shift, on an F32 cache: remove, move, decode."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="the reference implementation is not installed")
    parameters = llama_cpp.llama_model_default_params()
    # Repacked weights crash on virtual machines that announce AMX and do not have it.
    parameters.use_extra_bufts = False
    model = llama_cpp.llama_model_load_from_file(str(loaded.path).encode(), parameters)
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_threads, settings.n_threads_batch = 256, 1, 1
    settings.type_k = settings.type_v = 0  # F32
    settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    state = llama_cpp.llama_init_from_model(model, settings)
    memory = llama_cpp.llama_get_memory(state)

    def decode(tokens):
        ids = (llama_cpp.llama_token * len(tokens))(*tokens)
        assert llama_cpp.llama_decode(state, llama_cpp.llama_batch_get_one(ids, len(tokens))) == 0
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(state, -1), (512,)).copy()

    session = Session(loaded.model, Cache(loaded.model.sizes, 32, "f32"), keep=3)
    ours = session.read(session.start(PROMPT))
    theirs = decode(PROMPT)
    length, shifts = len(PROMPT), 0
    for _ in range(100):
        assert np.abs(ours - theirs).max() <= 1e-4 * np.ptp(theirs)
        token = int(theirs.argmax())
        if length == 32:
            discard = (length - 3) // 2
            llama_cpp.llama_memory_seq_rm(memory, 0, 3, 3 + discard)
            llama_cpp.llama_memory_seq_add(memory, 0, 3 + discard, length, -discard)
            length -= discard
            shifts += 1
        ours, theirs = session.read([token]), decode([token])
        length += 1
    assert shifts > 3
    assert session.cache.length == length
    llama_cpp.llama_free(state)
    llama_cpp.llama_model_free(model)
