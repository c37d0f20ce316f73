"""Observers of matrix products, and layers run one at a time."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from tiny_model import PROMPT, write_model

from quantcli.core.errors import GenerationError
from quantcli.formats.gguf.reader import open_gguf
from quantcli.kernels.compilation import trace
from quantcli.kernels.rows import dequantize
from quantcli.runner.cache import Cache
from quantcli.runner.load import prepare_model
from quantcli.runner.model import Model

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = runpy.run_path(str(GOLDEN / "logit_cases.py"))["CASES"]
ENCODERS = runpy.run_path(str(GOLDEN / "embedding_cases.py"))["CASES"]
TOKENS = PROMPT.tolist()

pytestmark = pytest.mark.filterwarnings("ignore:.*has no effect")


class Recorder:
    """Keeps all it is shown."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, int | None], list[np.ndarray]] = {}

    def __call__(self, tensor, rows, index):
        assert rows.dtype == np.float32
        self.seen.setdefault((tensor, index), []).append(rows.copy())


def observed(tmp_path, name):
    recorder = Recorder()
    with open_gguf(write_model(tmp_path, *CASES[name])) as file:
        model = prepare_model(file, observer=recorder).model
        matrices = {
            key: dequantize(file.map(tensor), tensor.type).reshape(tensor.shape)
            for key, tensor in file.tensors.items()
            if len(tensor.shape) > 1
        }
        plain = Model(file)
    return recorder.seen, model, plain, matrices


def run(model):
    return model.forward(TOKENS, Cache(model.sizes, 64, "f32"), every=True)


@pytest.mark.parametrize("name", ["qwen2", "mixtral", "deepseek3", "mamba2", "lfm2"])
def test_every_matrix_is_seen_and_nothing_changes(tmp_path, name):
    seen, model, plain, matrices = observed(tmp_path, name)
    np.testing.assert_array_equal(run(model), run(plain))
    read_by_row = {"token_embd.weight"} if "output.weight" in matrices else set()
    vectors = re.compile(r"conv(1d)?\.weight|ssm_(a|d|norm\.weight)$")
    multiplied = {key for key in matrices if not vectors.search(key)}
    assert {tensor for tensor, _ in seen} == multiplied - read_by_row
    for (tensor, index), batches in seen.items():
        assert (index is None) == (matrices[tensor].ndim == 2)
        assert {rows.shape[1] for rows in batches} == {matrices[tensor].shape[-1]}


def test_inputs_lead_to_the_outputs(tmp_path):
    seen, model, _, matrices = observed(tmp_path, "qwen2")
    logits = run(model)
    (gate,), (up,), (down,) = (seen[f"blk.0.ffn_{part}.weight", None] for part in ("gate", "up", "down"))
    np.testing.assert_array_equal(gate, up)
    gated = gate @ matrices["blk.0.ffn_gate.weight"].T
    expected = gated / (1 + np.exp(-gated)) * (up @ matrices["blk.0.ffn_up.weight"].T)
    np.testing.assert_allclose(down, expected, rtol=1e-3, atol=1e-5)
    output = "output.weight" if "output.weight" in matrices else "token_embd.weight"
    (last,) = seen[output, None]
    np.testing.assert_allclose(last @ matrices[output].T, logits, rtol=1e-3, atol=1e-4)


def test_an_expert_is_seen_with_its_own_tokens(tmp_path):
    seen, model, _, matrices = observed(tmp_path, "mixtral")
    run(model)
    (rows,) = seen["blk.0.ffn_gate_inp.weight", None]
    scores = rows @ matrices["blk.0.ffn_gate_inp.weight"].T
    used = model.sizes.feed_forward["experts"].used
    chosen = np.argsort(-scores, axis=1)[:, :used]
    for expert in range(scores.shape[1]):
        wanted = rows[(chosen == expert).any(axis=1)]
        found = seen.get(("blk.0.ffn_up_exps.weight", expert), [rows[:0]])[0]
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", ["llama", "gemma3", "llama4", "deepseek3", "lfm2", "mamba", "granitehybrid", "command-r"])
def test_layers_one_at_a_time_give_what_a_forward_pass_gives(tmp_path, monkeypatch, name):
    with open_gguf(write_model(tmp_path, *CASES[name])) as file:
        model = Model(file)
    whole, apart = (Cache(model.sizes, 64, "f32") for _ in range(2))
    expected = model.forward(TOKENS, whole, every=True)
    monkeypatch.setattr("quantcli.runner.model.BATCH", 10)  # three passes for the tokens
    hidden = model.embed(TOKENS)
    for index in range(len(model.layers)):
        model.run_layer(index, hidden, apart)
        assert apart.length == 0
    np.testing.assert_allclose(model.logits(hidden), expected, rtol=0, atol=2e-5 * np.ptp(expected))
    apart.length = len(TOKENS)  # what the layers remember is there
    following = [model.forward([7], cache) for cache in (whole, apart)]
    np.testing.assert_allclose(*following, rtol=0, atol=2e-5 * np.ptp(expected))


def test_layers_of_an_encoder_see_all_tokens_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("quantcli.runner.model.BATCH", 10)
    with open_gguf(write_model(tmp_path, *ENCODERS["bert"])) as file:
        model = Model(file)
    cache = Cache(model.sizes, len(TOKENS), "f32")
    hidden = model.embed(TOKENS)
    for index in range(len(model.layers)):
        model.run_layer(index, hidden, cache)
    np.testing.assert_array_equal(model.normed(hidden), model.hidden(TOKENS, cache))


def test_a_layer_takes_no_more_than_the_cache_holds(tmp_path):
    with open_gguf(write_model(tmp_path, *CASES["llama"])) as file:
        model = Model(file)
    with pytest.raises(GenerationError, match="context of 8 tokens is full"):
        model.run_layer(0, model.embed(TOKENS), Cache(model.sizes, 8, "f32"))


def test_a_trace_shows_an_observer_nothing(tmp_path):
    recorder = Recorder()
    with open_gguf(write_model(tmp_path, *CASES["mixtral"])) as file:
        model = prepare_model(file, observer=recorder).model
    kernels = {call.kernel.py_func.__name__ for call in trace(lambda: model.call_kernels(24, "f16", every=False))}
    assert {"multiply_few", "multiply_many", "attend", "attend_many"} <= kernels
    assert not recorder.seen
    run(model)
    assert recorder.seen
