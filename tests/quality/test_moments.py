"""Second moments of the inputs of products: against NumPy's, of layers of transformers; shrunk, stored, resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_model import write_converted
from transformers_model import VOCABULARY, random_model

from quantcli.core.errors import FormatError
from quantcli.formats.checkpoint.checkpoint import open_checkpoint
from quantcli.formats.gguf.reader import open_gguf
from quantcli.quality.moments import Factors, Inputs, MomentCollector
from quantcli.quality.stored_moments import StoredMoments
from quantcli.runner.cache import Cache
from quantcli.runner.model import Model

TOKENS = (np.random.default_rng(4).integers(3, VOCABULARY, 96)).tolist()
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}  # fmt: skip
EXPERTS = {
    **SIZES, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}  # fmt: skip
LLAMA = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "llama": ("llama", SIZES, LLAMA),
    "gemma3": ("gemma3_text", {**SIZES, "head_dim": 32, "query_pre_attn_scalar": 32}, LLAMA),
    "qwen3moe": ("qwen3_moe", EXPERTS, {name: LLAMA[name] for name in LLAMA if name.startswith("self")}),
}
"""The kind of transformers, its sizes, and its products by the names of GGUF."""

Doubles = NDArray[np.float64]
Found = dict[tuple[str, int], Inputs]


def watch(made: Any, products: dict[str, str]) -> tuple[dict[tuple[str, int], Doubles], Callable[[], None]]:
    """The moments of the inputs that layers of transformers get, once it is run."""
    seen: dict[tuple[str, int], Doubles] = {}

    def keep(key: tuple[str, int], rows: Any) -> None:
        flat = rows.detach().numpy().reshape(-1, rows.shape[-1]).astype(np.float64)
        seen[key] = seen.get(key, 0) + flat.T @ flat

    for number, layer in enumerate(made.model.layers):
        for name, gguf in products.items():
            key = f"blk.{number}.{gguf}.weight", 0
            layer.get_submodule(name).register_forward_pre_hook(lambda module, given, key=key: keep(key, given[0]))
        if hasattr(layer.mlp, "experts"):

            def experts(module: Any, given: Any, number: int = number) -> None:
                hidden, chosen = given[0].reshape(-1, given[0].shape[-1]), given[1]
                for expert in range(4):
                    keep((f"blk.{number}.ffn_up_exps.weight", expert), hidden[(chosen == expert).any(-1)])

            layer.mlp.experts.register_forward_pre_hook(experts)

    def run() -> None:
        import torch

        with torch.no_grad():
            made(torch.tensor([TOKENS]))

    return seen, run


def collected(path: Path) -> Found:
    with open_gguf(path) as file:
        collector = MomentCollector(lambda name: True)
        model = Model(file, None, collector)
    hidden, cache = model.embed(TOKENS), Cache(model.sizes, len(TOKENS), "f32")
    found: Found = {}
    for layer in range(model.sizes.layers):
        model.run_layer(layer, hidden, cache)
        found |= collector.take()
    return found


@pytest.mark.parametrize("name", MODELS)
def test_moments_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    kind, sizes, products = MODELS[name]
    made = random_model(tmp_path / "model", kind, sizes)
    with open_checkpoint(tmp_path / "model") as checkpoint:
        write_converted(checkpoint, tmp_path / "model.gguf")
    expected, run = watch(made, products)
    run()
    found = collected(tmp_path / "model.gguf")
    assert len(expected) == 2 * (len(products) + (4 if name == "qwen3moe" else 0))
    for key, moment in expected.items():
        own = np.triu(found[key].moment)
        np.testing.assert_allclose(own, np.triu(moment), rtol=0, atol=1e-5 * np.abs(moment).max(), err_msg=str(key))
    assert found["blk.0.attn_q.weight", 0] is found["blk.0.attn_k.weight", 0]


def inputs(seed: int, count: int, n: int = 64) -> Inputs:
    x = np.random.default_rng(seed).standard_normal((count, n)).astype(np.float32)
    return Inputs(np.triu(x.T @ x), count, [x[:3]])


def test_an_expert_without_tokens_has_the_moment_of_all() -> None:
    first, second = inputs(1, 200), inputs(2, 100)
    factors = Factors([first, None, second], 0.01)
    pooled = (first.moment + second.moment) * (256 / 300)
    for matrix, expected in ((1, pooled), (0, pooled + first.moment), (2, pooled + second.moment)):
        own = factors[matrix].moment
        off = ~np.eye(len(own), dtype=bool)
        np.testing.assert_allclose(np.triu(own)[off], np.triu(expected)[off], rtol=1e-5, atol=1e-4)
    assert factors[2] is factors[2]


def test_moments_are_stored_and_read(tmp_path: Path) -> None:
    one, other = inputs(1, 10), inputs(2, 20)
    found = {("blk.0.attn_q.weight", 0): one, ("blk.0.attn_k.weight", 0): one, ("blk.0.ffn_up_exps.weight", 3): other}
    stored = StoredMoments(tmp_path / "moments", {"model": "a", "text": "b"})
    assert stored.read(0) is None
    stored.write(0, found)
    again = stored.read(0)
    assert again is not None
    assert again.keys() == found.keys()
    assert again["blk.0.attn_q.weight", 0] is again["blk.0.attn_k.weight", 0]
    for key, expected in found.items():
        np.testing.assert_array_equal(again[key].moment, expected.moment)
        np.testing.assert_array_equal(again[key].held_rows, expected.held_rows)
        assert again[key].count == expected.count
    with pytest.raises(FormatError, match="made from another text"):
        StoredMoments(tmp_path / "moments", {"model": "a", "text": "c"}).read(0)
    path = stored.path(0)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(FormatError, match="damaged"):
        stored.read(0)


def test_inputs_that_are_held_out_are_joined_once() -> None:
    given = Inputs(np.zeros((2, 2), np.float32), 0, [np.ones((1, 2), np.float32), np.zeros((2, 2), np.float32)])
    joined = given.held_rows
    np.testing.assert_array_equal(joined, [[1, 1], [0, 0], [0, 0]])
    assert given.held_rows is joined
