"""The forward pass: against tokens recorded from llama.cpp, against llama.cpp itself, and on files that cannot be run."""

from __future__ import annotations

import numpy as np
import pytest

from quantcli.conversion.convert import convert
from quantcli.core.errors import GenerationError, ModelError, UnsupportedError, UsageError
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.spec import ValueType, array, f32, string, u32
from quantcli.formats.gguf.writer import GGUFWriter
from quantcli.runner.cache import Cache
from quantcli.runner.hyperparameters import read_hyperparameters
from quantcli.runner.model import Model
from quantcli.runner.rotary import make_rotary
from quantcli.tensors.tensor import TensorInfo

PROMPT = [1, 403, 407, 261, 378]  # "Once upon a time"

# llama.cpp (llama-cpp-python 0.3.36), one thread, F32 cache, on stories260K in F32: greedily after PROMPT.
GREEDY = [
    432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426, 338, 401, 396, 267, 337, 410, 408, 419, 292, 411, 322, 265, 282,
    295, 433, 426, 385, 328, 432, 358, 394, 261, 370, 432, 352, 266, 268, 388, 426, 338, 391, 266, 267, 337, 335, 312, 432,
    398, 312, 286, 267, 414, 270, 333, 415, 426, 13, 438, 310, 439, 419, 357, 336,
]  # fmt: skip


@pytest.fixture(scope="module")
def model(stories):
    with open_gguf(stories) as file:
        return Model(file)


def greedy(model: Model, prompt: list[int], count: int, precision: str = "f32") -> list[int]:
    cache = Cache(model.sizes, len(prompt) + count, precision)
    logits = model.forward(prompt, cache)
    tokens = []
    for _ in range(count):
        tokens.append(int(np.argmax(logits[0])))
        logits = model.forward(tokens[-1:], cache)
    return tokens


@pytest.mark.parametrize("precision", ["f32", "f16"])
def test_greedy_tokens_are_those_of_the_reference(model, precision):
    assert greedy(model, PROMPT, 64, precision) == GREEDY


def test_a_prompt_gives_the_same_logits_however_it_is_cut(model):
    tokens = [*PROMPT, *GREEDY[:40]]
    whole = model.forward(tokens, Cache(model.sizes, 64, "f32"), every=True)
    cache = Cache(model.sizes, 64, "f32")
    parts = [model.forward(tokens[start:stop], cache, every=True) for start, stop in ((0, 1), (1, 8), (8, 9), (9, 45))]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=2e-5 * np.ptp(whole))
    assert cache.length == 45
    last = model.forward(tokens, Cache(model.sizes, 64, "f32"))
    assert last.shape == (1, model.vocabulary)
    np.testing.assert_allclose(last[0], whole[-1], atol=2e-5 * np.ptp(whole))


def test_a_prompt_longer_than_a_batch_goes_through_in_batches(model, monkeypatch):
    tokens = [*PROMPT, *GREEDY]
    whole = model.forward(tokens, Cache(model.sizes, 80, "f32"), every=True)
    monkeypatch.setattr("quantcli.runner.model.BATCH", 16)
    np.testing.assert_allclose(
        model.forward(tokens, Cache(model.sizes, 80, "f32"), every=True), whole, atol=2e-5 * np.ptp(whole)
    )


def test_a_full_cache_takes_no_more(model):
    cache = Cache(model.sizes, 6)
    model.forward(PROMPT, cache)
    with pytest.raises(GenerationError, match="context of 6 tokens is full: 5 in it, 2 more to come"):
        model.forward([1, 2], cache)
    model.forward([1], cache)
    assert cache.length == 6
    with pytest.raises(GenerationError, match="is full"):
        model.forward([1], cache)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [([], "no tokens"), ([512], "token 512 is not in the vocabulary of 512"), ([1, -1], "token -1 is not")],
)
def test_tokens_that_are_none_are_refused(model, tokens, message):
    with pytest.raises(GenerationError, match=message):
        model.forward(tokens, Cache(model.sizes, 8))


def test_caches_have_known_precisions_and_some_room(model):
    with pytest.raises(UsageError, match="unknown cache type 'q3'"):
        Cache(model.sizes, 8, "q3")
    with pytest.raises(UsageError, match="context of 0 tokens"):
        Cache(model.sizes, 0)
    with pytest.raises(GenerationError, match="out of memory for a context of 100000000000000000 tokens"):
        Cache(model.sizes, 10**17)


# Files that are not whole

WIDTH, INNER = 32, 48


def tiny_file(path, change=lambda metadata, shapes: None):
    """A random llama of one layer, after `change` has spoiled its metadata or the shapes of its tensors."""
    metadata = {
        "general.architecture": string("llama"),
        "llama.block_count": u32(1),
        "llama.context_length": u32(64),
        "llama.embedding_length": u32(WIDTH),
        "llama.attention.head_count": u32(2),
        "llama.attention.head_count_kv": u32(1),
        "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
    }
    shapes = {
        "token_embd.weight": (20, WIDTH), "output_norm.weight": (WIDTH,), "blk.0.attn_norm.weight": (WIDTH,),
        "blk.0.attn_q.weight": (WIDTH, WIDTH), "blk.0.attn_k.weight": (16, WIDTH), "blk.0.attn_v.weight": (16, WIDTH),
        "blk.0.attn_output.weight": (WIDTH, WIDTH), "blk.0.ffn_norm.weight": (WIDTH,),
        "blk.0.ffn_gate.weight": (INNER, WIDTH), "blk.0.ffn_up.weight": (INNER, WIDTH),
        "blk.0.ffn_down.weight": (WIDTH, INNER),
    }  # fmt: skip
    change(metadata, shapes)
    from quantcli.core.block_types import TYPES

    infos = [TensorInfo(name, shape, TYPES["F32"]) for name, shape in shapes.items()]
    random = np.random.default_rng(1)
    with GGUFWriter(path, metadata, infos) as writer:
        for index, info in enumerate(infos):
            data = random.normal(size=(info.rows, info.row_length)).astype(np.float32) * 0.2
            writer.write(index, 0, data.view(np.uint8))
    return path


def test_a_file_without_optional_keys_runs(tmp_path):
    with open_gguf(tiny_file(tmp_path / "tiny.gguf")) as file:
        tiny = Model(file)
    assert np.isfinite(tiny.forward([1, 2, 3], Cache(tiny.sizes, 8))).all()


def test_layers_that_predict_further_tokens_are_not_run(tmp_path):
    def change(metadata, shapes):
        metadata |= {"llama.block_count": u32(2), "llama.nextn_predict_layers": u32(1)}
        shapes |= {"blk.1.nextn.eh_proj.weight": (WIDTH, 2 * WIDTH)}

    with open_gguf(tiny_file(tmp_path / "tiny.gguf", change)) as file:
        more = Model(file)
    with open_gguf(tiny_file(tmp_path / "plain.gguf")) as file:
        plain = Model(file)
    tokens = [1, 2, 3]
    expected = plain.forward(tokens, Cache(plain.sizes, 8))
    np.testing.assert_array_equal(more.forward(tokens, Cache(more.sizes, 8)), expected)


def test_biases_are_added_where_the_file_has_them(tmp_path):
    def change(metadata, shapes):
        shapes |= {"blk.0.attn_q.bias": (WIDTH,), "blk.0.ffn_down.bias": (WIDTH,)}

    with open_gguf(tiny_file(tmp_path / "tiny.gguf", change)) as file:
        tiny = Model(file)
    attention, mlp = tiny.layers[0].mixer, tiny.layers[0].mlp
    query, key, _ = attention.projections
    x = np.ones((2, WIDTH), np.float32)
    assert query.bias is not None
    weights = query.weights.view(np.float32)
    np.testing.assert_allclose(query(x), x @ weights.T + query.bias, rtol=1e-4, atol=1e-5)
    assert mlp.down.bias is not None
    assert key.bias is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m, s: s.pop("blk.0.ffn_up.weight"), ModelError, "lacks the tensor 'blk.0.ffn_up.weight'"),
        (lambda m, s: s.update({"blk.0.attn_k.weight": (8, WIDTH)}), ModelError, r"\(8, 32\), expected \(16, 32\)"),
        (lambda m, s: s.update({"blk.0.attn_norm.weight": (8,)}), ModelError, r"attn_norm.weight' has shape"),
        (lambda m, s: m.pop("llama.block_count"), ModelError, "lack llama.block_count"),
        (lambda m, s: m.update({"llama.block_count": f32(1.5)}), ModelError, "block_count is 1.5, expected a count"),
        (lambda m, s: m.update({"llama.attention.head_count": u32(0)}), ModelError, "0 attention heads cannot share"),
        (lambda m, s: m.update({"llama.attention.head_count_kv": u32(3)}), ModelError, "2 attention heads cannot share 3"),
        (lambda m, s: m.update({"llama.rope.dimension_count": u32(7)}), ModelError, "expected an even number"),
        (lambda m, s: m.update({"llama.rope.freq_base": f32(float("nan"))}), ModelError, "expected a finite number"),
        (lambda m, s: m.update({"llama.rope.scaling.type": string("su")}), UnsupportedError, "rope scaling 'su'"),
        (lambda m, s: m.update({"llama.expert_count": u32(8)}), ModelError, "lack llama.expert_used_count"),
        (lambda m, s: m.update({"general.architecture": string("nonesuch")}), (UnsupportedError, ModelError), "nonesuch"),
        (lambda m, s: m.update({"llama.expert_count": u32(8), "llama.expert_used_count": u32(9)}), ModelError,
         "expert_used_count is 9, expected no more than the 8 experts"),
        (lambda m, s: m.update({"llama.expert_count": u32(8), "llama.expert_used_count": u32(2),
                                "llama.expert_group_count": u32(3)}), ModelError, "group_count is 3, expected groups"),
        (lambda m, s: m.update({"llama.expert_count": u32(8), "llama.expert_used_count": u32(2),
                                "llama.expert_group_count": u32(4)}), ModelError, "expert_group_used_count is 0"),
        (lambda m, s: s.update({"blk.0.ffn_gate_inp.weight": (8, WIDTH)}), ModelError, "no llama.expert_count"),
        (lambda m, s: m.update({"llama.block_count": u32(100)}), ModelError, "100, expected no more layers than .* 11"),
        (lambda m, s: m.update({"llama.nextn_predict_layers": u32(1)}), ModelError, "expected fewer than the 1 layers"),
        (lambda m, s: m.update({"llama.attention.head_count_kv": array(ValueType.INT32, [1, 1])}), ModelError,
         "head_count_kv is an array of 2, expected one number, or one for each of 1 layers"),
        (lambda m, s: m.update({"llama.attention.head_count_kv": array(ValueType.INT32, [-1])}), ModelError, "-1, expect"),
        (lambda m, s: m.update({"llama.attention.head_count_kv": u32(0)}), ModelError, "layer 0 has no key-value heads"),
        (lambda m, s: m.update({"llama.attention.value_length": u32(8)}), ModelError, r"attn_v.weight' has shape"),
        (lambda m, s: m.update({"llama.rope.scaling.factor": f32(-1)}), ModelError, "expected positive numbers"),
        (lambda m, s: m.update({"llama.rope.freq_base": f32(0.5)}), ModelError, "freq_base is 0.5, expected more than 1"),
        (lambda m, s: s.update({"rope_freqs.weight": (7,)}), ModelError, r"rope_freqs.weight' has shape \(7,\), expected"),
        (lambda m, s: s.update({"blk.0.attn_q_norm.weight": (16,), "more": (1,)}), UnsupportedError,
         "'llama' does not use tensor 'blk.0.attn_q_norm.weight' and 1 more"),
        (lambda m, s: m.pop("general.architecture"), ModelError, "no general.architecture"),
    ],
)  # fmt: skip
def test_what_a_file_lacks_is_said_in_one_line(tmp_path, change, error, message):
    with open_gguf(tiny_file(tmp_path / "bad.gguf", change)) as file, pytest.raises(error, match=message) as caught:
        Model(file)
    assert "\n" not in str(caught.value)


# Rotary frequencies


def rotary(tmp_path, divisors=None, **keys):
    def change(metadata, shapes):
        metadata |= {f"llama.{key}": value for key, value in keys.items()}

    with open_gguf(tiny_file(tmp_path / "rope.gguf", change)) as file:
        return make_rotary(read_hyperparameters(file)[0].rope, divisors)


def test_frequencies_fall_from_one_and_are_stretched(tmp_path):
    plain = rotary(tmp_path)
    np.testing.assert_allclose(plain.frequencies, 10000.0 ** (-np.arange(8) / 8))
    cosines, sines = plain.angles(3, 2)
    np.testing.assert_allclose(cosines, np.cos(np.outer([3, 4], plain.frequencies)), atol=1e-7)
    np.testing.assert_allclose(sines, np.sin(np.outer([3, 4], plain.frequencies)), atol=1e-7)
    (tmp_path / "rope.gguf").unlink()
    linear = rotary(tmp_path, **{"rope.scaling.type": string("linear"), "rope.scaling.factor": f32(4)})
    np.testing.assert_allclose(linear.frequencies, plain.frequencies / 4)
    (tmp_path / "rope.gguf").unlink()
    divided = rotary(tmp_path, divisors=np.arange(1, 9, dtype=np.float32))
    np.testing.assert_allclose(divided.frequencies, plain.frequencies / np.arange(1, 9))


def test_yarn_keeps_fast_pairs_slows_slow_ones_and_grows_attention(tmp_path):
    yarn = rotary(tmp_path, **{
        "rope.scaling.type": string("yarn"), "rope.scaling.factor": f32(8),
        "rope.scaling.original_context_length": u32(4096),
    })  # fmt: skip
    plain = 10000.0 ** (-np.arange(8) / 8)
    share = yarn.frequencies / plain
    assert share[0] == 1
    assert share[-1] == pytest.approx(1 / 8)
    assert (np.diff(share) <= 0).all()
    assert yarn.magnitude == pytest.approx(1 + 0.1 * np.log(8))


# The reference itself


@pytest.fixture(scope="module")
def reference():
    """llama.cpp's logits after each token, as its own low-level interface gives them."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="the reference implementation is not installed")

    def logits(path, tokens):
        parameters = llama_cpp.llama_model_default_params()
        # Repacked weights crash on virtual machines that announce AMX and do not have it.
        parameters.use_extra_bufts = False
        loaded = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_threads, settings.n_threads_batch = 512, 1, 1
        settings.type_k = settings.type_v = 0  # F32
        settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it rounds queries to halves
        context = llama_cpp.llama_init_from_model(loaded, settings)
        vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(loaded))
        rows = []
        for token in tokens:
            ids = (llama_cpp.llama_token * 1)(token)
            assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(ids, 1)) == 0
            pointer = llama_cpp.llama_get_logits_ith(context, -1)
            rows.append(np.ctypeslib.as_array(pointer, (vocabulary,)).copy())
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(loaded)
        return np.array(rows)

    return logits


# How far logits may be apart, as a share of their range. For F16 the reference rounds activations to halves. For packed
# types both round them to int8; a number near the middle of two codes may go either way, which the layers after carry on.
@pytest.mark.parametrize(("kind", "share"), [("F32", 1e-5), ("F16", 1e-3), ("Q8_0", 0.01), ("Q4_K_M", 0.02)])
def test_logits_are_those_of_the_reference(kind, share, shared, reference, tmp_path):
    path = tmp_path / "storyteller.gguf"
    convert(shared / "models" / "storyteller", kind, path)
    with open_gguf(path) as file:
        model = Model(file)
    tokens = greedy(model, [1, 419, 436, 261, 396], 64)
    tokens = [1, 419, 436, 261, 396, *tokens][:64]
    theirs = reference(path, tokens)
    ours = model.forward(tokens, Cache(model.sizes, 64, "f32"), every=True)
    assert np.abs(ours - theirs).max() <= share * np.ptp(theirs)
    if kind in ("F32", "F16"):
        assert theirs[4:-1].argmax(1).tolist() == tokens[5:]
