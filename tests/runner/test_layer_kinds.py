"""Every kind of layer in the registries, on random small weights, against its plain twin in `plain_layers`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import plain_layers
import pytest

from quantcli.architectures.graph import Graph
from quantcli.architectures.loader import architectures
from quantcli.core.block_types import TYPES
from quantcli.core.errors import ModelError, UnsupportedError
from quantcli.formats.gguf.spec import f32, string, u32
from quantcli.runner.cache import Cache, LayerMemory
from quantcli.runner.feed_forward.dense import FORMS, DenseSizes
from quantcli.runner.feed_forward.experts import ExpertSizes
from quantcli.runner.feed_forward.registry import FEED_FORWARD
from quantcli.runner.hyperparameters import read_hyperparameters
from quantcli.runner.mixers.attention import AttentionSizes
from quantcli.runner.mixers.mamba import MambaSizes
from quantcli.runner.mixers.mamba2 import Mamba2Sizes
from quantcli.runner.mixers.mla import MlaSizes
from quantcli.runner.mixers.registry import MIXERS
from quantcli.runner.mixers.scores import ScoreSizes
from quantcli.runner.mixers.short_convolution import ShortConvolutionSizes
from quantcli.runner.mixers.windows import Window
from quantcli.runner.model import Model
from quantcli.runner.rotary import Rope, RopeScaling
from quantcli.runner.step import Temperature, read_positions
from quantcli.runner.weights import Weights
from quantcli.tensors.tensor import TensorInfo

WIDTH, TOKENS = 32, 12
GRAPH = Graph.parse({"norm": "rms", "activation": "silu", "mlp": "gated", "rope": "adjacent"})
UNSCALED = RopeScaling("none", 1.0, 4096, 1.0, 32.0, 1.0, 1.0)
ALL = Window(0, False, 0)
SCORES = ScoreSizes(scale=0.3, softcap=0.0, alibi=0.0)


@dataclass(frozen=True)
class Arrays:
    """A model's file that is nowhere but in memory."""

    arrays: dict[str, np.ndarray]
    metadata: dict[str, Any]
    path: Path = Path("arrays")

    @property
    def tensors(self):
        return {name: TensorInfo(name, array.shape, TYPES["F32"]) for name, array in self.arrays.items()}

    def map(self, tensor):
        array = self.arrays[tensor.name]
        return array.reshape(-1, array.shape[-1]).view(np.uint8)


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int = 5) -> dict[str, np.ndarray]:
    """By the names without `blk.0.`; decays are negative, norms near one."""
    random = np.random.default_rng(seed)
    made = {}
    for name, shape in shapes.items():
        numbers = random.normal(size=shape) / np.sqrt(shape[-1] if len(shape) > 1 else 4)
        if name == "ssm_a":
            numbers = -np.exp(numbers)
        made[name] = (1 + numbers / 4 if "norm" in name else numbers).astype(np.float32)
    return made


def loaded(weights: dict[str, np.ndarray]) -> Weights:
    return Weights(Arrays({f"blk.0.{name}": array for name, array in weights.items()}, {}))


def rows() -> np.ndarray:
    return np.random.default_rng(6).normal(size=(TOKENS, WIDTH)).astype(np.float32)


def check_mixer(sizes, weights, twin, *, graph=GRAPH, rope_size=0, temperature=None, whole=False) -> None:
    """Run the fast layer in pieces, or as a `whole`, and compare it with the twin on all tokens at once."""
    taken = loaded(weights)
    rope = Rope(rope_size, 1e4, 1e4, UNSCALED)
    common = SimpleNamespace(width=WIDTH, norm_epsilon=1e-5, rope=rope)
    layer = sizes.load(taken, graph, common, 0)
    assert not taken.unused()
    cache = Cache(SimpleNamespace(memory=[sizes.memory]), TOKENS, "f32")
    positions = read_positions(taken, rope, temperature, rope_size > 0, True)
    x, found = rows(), []
    for start, stop in ((0, TOKENS),) if whole else ((0, 5), (5, 6), (6, 7), (7, TOKENS)):
        found.append(layer(x[start:stop], positions.step(cache, start, stop - start)))
        cache.length = stop
    exact = {name.removeprefix("blk.0."): array.astype(np.float64) for name, array in weights.items()}
    expected = twin(exact, x.astype(np.float64))
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=0, atol=2e-5 * np.ptp(expected))


# Attention

ATTENTION = AttentionSizes(
    heads=4, kv_heads=2, key_size=16, value_size=8, window=ALL, rotates=False, scores=SCORES, clamp=0.0
)  # fmt: skip
HEADS = {
    "attn_q.weight": (64, WIDTH), "attn_k.weight": (32, WIDTH), "attn_v.weight": (16, WIDTH),
    "attn_output.weight": (WIDTH, 32),
}  # fmt: skip
FUSED = {"attn_qkv.weight": (112, WIDTH), "attn_qkv.bias": (112,), "attn_output.weight": (WIDTH, 32)}
NORMED = {"attn_q_norm.weight": (16,), "attn_k_norm.weight": (16,)}
TEMPERATURE = Temperature(0.5, 4.0, 1.0)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("changes", "graph", "twin", "options"),
    [
        ({}, {}, {}, {}),
        ({"rotates": True}, {}, {"rotated": 12}, {"rope_size": 12}),
        ({"rotates": True}, {"rope": "halves"}, {"rotated": 16, "adjacent": False}, {"rope_size": 16}),
        ({"kv_heads": 2, "clamp": 0.4}, {}, {"clamp": 0.4}, {}),
        ({"window": Window(3, False, 0)}, {}, {"sees": lambda query, key: query - 3 < key <= query}, {}),
        ({"window": Window(4, True, 0)}, {}, {"sees": lambda query, key: query // 4 * 4 <= key <= query}, {}),
        ({"window": Window(3, False, 2)}, {}, {"sees": lambda query, key: abs(query - key) < 3}, {"whole": True}),
        ({"scores": replace(SCORES, softcap=0.7)}, {}, {"softcap": 0.7}, {}),
        ({"scores": replace(SCORES, alibi=8.0)}, {}, {"alibi": 8.0}, {}),
        ({}, {"attention_sinks": True}, {}, {}),
        ({"rotates": True}, {"head_norm": "rms"}, {"rotated": 16}, {"rope_size": 16}),
        ({}, {}, {"temperature": lambda p: np.log((p + 1) // 4 + 1) * 0.5 + 1}, {"temperature": TEMPERATURE}),
    ],
    ids=["plain", "rope", "rope-halves", "clamp", "window", "chunks", "encoder", "softcap", "alibi", "sinks", "norms",
         "temperature"],
)  # fmt: skip
def test_attention(fused, changes, graph, twin, options):
    sizes = replace(ATTENTION, **changes)
    shapes = dict(FUSED if fused else HEADS)
    shapes |= {"attn_sinks.weight": (4,)} if graph.get("attention_sinks") else {}
    shapes |= NORMED if graph.get("head_norm") else {}
    extents = {"heads": 4, "kv_heads": 2, "key_size": 16, "value_size": 8, "scale": 0.3}
    check_mixer(
        sizes, random_weights(shapes), partial(plain_layers.attention, **extents, **twin), graph=replace(GRAPH, **graph),
        **options,
    )  # fmt: skip


# The other mixers

MLA = MlaSizes(
    heads=2, query_rank=12, rank=16, key_size=24, value_size=8, rope_size=8, absorbed=False, window=ALL, rotates=True,
    scores=SCORES,
)  # fmt: skip
QUERIES = {"attn_q.weight": (48, WIDTH)}
LOW_RANK = {"attn_q_a.weight": (12, WIDTH), "attn_q_a_norm.weight": (12,), "attn_q_b.weight": (48, 12)}
COMPRESSED = {"attn_kv_a_mqa.weight": (24, WIDTH), "attn_kv_a_norm.weight": (16,), "attn_output.weight": (WIDTH, 16)}
EXPANDED = {"attn_kv_b.weight": (48, 16)}
ABSORBED = {"attn_k_b.weight": (2, 16, 16), "attn_v_b.weight": (2, 8, 16)}


@pytest.mark.parametrize("queries", [QUERIES, LOW_RANK], ids=["direct", "low-rank"])
@pytest.mark.parametrize(("absorbed", "up"), [(False, EXPANDED), (True, ABSORBED)], ids=["expanded", "absorbed"])
def test_mla(queries, absorbed, up):
    twin = partial(plain_layers.mla, heads=2, rank=16, key_size=24, value_size=8, rope_size=8, scale=0.3)
    check_mixer(replace(MLA, absorbed=absorbed), random_weights({**queries, **COMPRESSED, **up}), twin, rope_size=8)


@pytest.mark.parametrize("kernel_size", [2, 4])
def test_short_convolution(kernel_size):
    shapes = {
        "shortconv.conv.weight": (WIDTH, kernel_size), "shortconv.in_proj.weight": (3 * WIDTH, WIDTH),
        "shortconv.out_proj.weight": (WIDTH, WIDTH),
    }  # fmt: skip
    check_mixer(ShortConvolutionSizes(kernel_size, WIDTH), random_weights(shapes), plain_layers.short_convolution)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_mamba(normed, biased):
    shapes = {
        "ssm_in.weight": (48, WIDTH), "ssm_conv1d.weight": (24, 4), "ssm_x.weight": (14, 24), "ssm_dt.weight": (24, 4),
        "ssm_dt.bias": (24,), "ssm_a": (24, 5), "ssm_d": (24,), "ssm_out.weight": (WIDTH, 24),
    }  # fmt: skip
    shapes |= {"ssm_conv1d.bias": (24,)} if biased else {}
    shapes |= {"ssm_dt_norm.weight": (4,), "ssm_b_norm.weight": (5,), "ssm_c_norm.weight": (5,)} if normed else {}
    sizes = MambaSizes(kernel_size=4, inner=24, states=5, rank=4, normed=False)
    check_mixer(sizes, random_weights(shapes), partial(plain_layers.mamba, inner=24, states=5, rank=4))


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_mamba2(normed, groups):
    convolved = 24 + 2 * groups * 5
    shapes = {
        "ssm_in.weight": (24 + convolved + 4, WIDTH), "ssm_conv1d.weight": (convolved, 3), "ssm_conv1d.bias": (convolved,),
        "ssm_dt.bias": (4,), "ssm_a": (4, 1), "ssm_d": (4, 1), "ssm_out.weight": (WIDTH, 24),
    }  # fmt: skip
    shapes |= {"ssm_norm.weight": (groups, 24 // groups)} if normed else {}
    sizes = Mamba2Sizes(kernel_size=3, inner=24, states=5, heads=4, groups=groups)
    check_mixer(sizes, random_weights(shapes), partial(plain_layers.mamba2, inner=24, states=5, heads=4, groups=groups))


# Feed-forward networks


def check_feed_forward(sizes, weights, twin, **flags) -> None:
    taken = loaded(weights)
    network = sizes.load(taken, replace(GRAPH, **flags), WIDTH, "blk.0.")
    assert not taken.unused()
    x = rows()
    expected = twin({name: array.astype(np.float64) for name, array in weights.items()}, x.astype(np.float64))
    assert np.ptp(expected) > 0.1
    for start, stop in ((0, TOKENS), (3, 4)):  # one token goes another way
        found = network(x[start:stop].copy(), None)
        np.testing.assert_allclose(found, expected[start:stop], rtol=0, atol=2e-5 * np.ptp(expected))


@pytest.mark.parametrize("form", FORMS)
def test_dense(form):
    up = {"gated": 40, "plain": 40, "fused_gated": 80}[form]
    shapes = {"ffn_up.weight": (up, WIDTH), "ffn_up.bias": (up,), "ffn_down.weight": (WIDTH, 40), "ffn_down.bias": (WIDTH,)}
    shapes |= {"ffn_gate.weight": (40, WIDTH)} if form == "gated" else {}
    check_feed_forward(DenseSizes(), random_weights(shapes), partial(plain_layers.dense, form=form), mlp=form)


APART = {"ffn_gate_exps.weight": (8, 24, WIDTH), "ffn_up_exps.weight": (8, 24, WIDTH)}
EXPERTS = {"ffn_gate_inp.weight": (8, WIDTH), "ffn_down_exps.weight": (8, WIDTH, 24)}
SHARED = {"ffn_gate_shexp.weight": (40, WIDTH), "ffn_up_shexp.weight": (40, WIDTH), "ffn_down_shexp.weight": (WIDTH, 40)}


@pytest.mark.parametrize(
    ("more", "options"),
    [
        (APART, {}),
        ({"ffn_gate_up_exps.weight": (8, 48, WIDTH)}, {}),
        ({**APART, **SHARED}, {"norm": True}),
        ({**APART, **SHARED, "ffn_gate_inp_shexp.weight": (WIDTH,)}, {"gating": "softmax_of_chosen"}),
        ({**APART, "exp_probs_b.bias": (8,)}, {"gating": "sigmoid", "norm": True, "scale": 2.5}),
        ({**APART, "exp_probs_b.bias": (8,)}, {"gating": "sigmoid", "groups": 4, "groups_used": 2}),
        (APART, {"gating": "sqrt_softplus"}),
        (APART, {"gating": "sparse_mixer"}),
        (APART, {"gating": "sigmoid", "weights_before": True}),
        ({**APART, **SHARED}, {"gating": "sigmoid", "mean": True}),
        ({**APART, "exp_probs_b": (8,)}, {"gating": "sigmoid"}),
    ],
    ids=[
        "softmax", "fused", "shared", "shared-gate", "bias", "groups", "softplus", "sparse", "before", "mean", "short-name",
    ],
)
def test_experts(more, options):
    names = {"weights_before": "expert_weights_before", "mean": "shared_expert_mean"}
    flags = {names[key]: value for key, value in options.items() if key in names}
    chosen = {key: value for key, value in options.items() if key not in names}
    sizes = ExpertSizes(count=8, used=3, shared="ffn_up_shexp.weight" in more, **chosen)
    twin = partial(plain_layers.experts, used=3, **options)
    weights = random_weights({**EXPERTS, **more})
    weights["ffn_gate_inp.weight"][4:] = 1.01 * weights["ffn_gate_inp.weight"][:4]  # so that some are near the best
    check_feed_forward(sizes, weights, twin, **flags)


# The registries


def test_every_kind_has_a_twin_and_a_test():
    for kind in (*MIXERS, *FEED_FORWARD):
        assert callable(getattr(plain_layers, kind))
        assert callable(globals()[f"test_{kind}"])


def test_graphs_name_kinds_that_are_there():
    for architecture in architectures():
        if architecture.graph:
            variants = (variant for _, variant in architecture.graph.variants)
            for graph in (architecture.graph, *variants):
                assert {graph.mixer, graph.recurrent} <= {*MIXERS, "none"}, architecture.name


def test_a_kind_that_is_not_there_is_refused_by_name(monkeypatch):
    graph = replace(GRAPH, mixer="wavelets")
    monkeypatch.setattr("quantcli.runner.hyperparameters.graph_of", lambda gguf, extra_file=None: graph)
    keys = {"block_count": 1, "context_length": 8, "embedding_length": 8, "attention.head_count": 2}
    metadata = {"general.architecture": string("llama"), **{f"llama.{key}": u32(value) for key, value in keys.items()}}
    with pytest.raises(UnsupportedError, match="layers of the kind 'wavelets', expected one of attention, mamba, "):
        read_hyperparameters(Arrays({"token_embd.weight": np.zeros((4, 8), np.float32)}, metadata))


@dataclass(frozen=True)
class MeanSizes:
    """A new kind: each token gets the mean of those so far, which is kept as their sum."""

    width: int
    memory = LayerMemory(states=((1, WIDTH),))
    rotatable = 0

    def load(self, weights, graph, sizes, index):
        project = weights.matrix(f"blk.{index}.mean", sizes.width, self.width)

        def run(x, step):
            (total,) = step.cache.states[index]
            sums = total + np.cumsum(x, axis=0)
            total[...] = sums[-1]
            return project((sums / np.arange(step.position + 1, step.position + len(x) + 1)[:, None]).astype(np.float32))

        return run


def test_a_new_kind_is_a_file_and_a_row(monkeypatch):
    row = {"mean": lambda read, graph, count, layers: [MeanSizes(read.count("embedding_length"))] * len(layers)}
    monkeypatch.setattr("quantcli.runner.hyperparameters.MIXERS", {**MIXERS, **row})
    graph = replace(GRAPH, rope="none", recurrent="mean", mlp="none", mlp_norm=())
    monkeypatch.setattr("quantcli.runner.hyperparameters.graph_of", lambda gguf, extra_file=None: graph)
    keys = {"block_count": 1, "context_length": 32, "embedding_length": WIDTH}
    metadata = {"general.architecture": string("llama"), **{f"llama.{key}": u32(value) for key, value in keys.items()}}
    metadata["llama.attention.layer_norm_rms_epsilon"] = f32(1e-5)
    shapes = {"token_embd.weight": (20, WIDTH), "blk.0.attn_norm.weight": (WIDTH,), "blk.0.mean.weight": (WIDTH, WIDTH)}
    weights = random_weights({**shapes, "output_norm.weight": (WIDTH,)})
    model = Model(Arrays(weights, metadata))
    tokens, cache = [3, 1, 4, 1, 5, 9, 2, 6], Cache(model.sizes, 16, "f32")
    found = np.concatenate([model.forward(tokens[:3], cache, every=True), model.forward(tokens[3:], cache, every=True)])
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    x = w["token_embd.weight"][tokens]
    normed = np.array([plain_layers.rms_norm(row, w["blk.0.attn_norm.weight"]) for row in x])
    x += np.array([normed[: count + 1].mean(axis=0) for count in range(len(x))]) @ w["blk.0.mean.weight"].T
    last = np.array([plain_layers.rms_norm(row, w["output_norm.weight"]) for row in x])
    np.testing.assert_allclose(found, last @ w["token_embd.weight"].T, rtol=0, atol=1e-4)
    assert cache.rewind(4) == 0  # states hold for one number of tokens


def test_experts_that_nothing_counts_are_refused():
    with pytest.raises(ModelError, match=r"arrays: there are expert tensors, but no .*expert_count"):
        ExpertSizes().load(loaded(random_weights({**EXPERTS, **APART})), GRAPH, WIDTH, "blk.0.")
