"""Configurations that claim what no model has: refused in one line, whatever the key, before time or memory is spent."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from memory import memory_tensor
from tiny_checkpoint import tensor_values

from quantcli.architectures.loader import architectures, find_architecture
from quantcli.core.errors import QuantcliError

GOLDENS = Path(__file__).parents[1] / "golden/architectures"
MOST_MEMORY = 1 << 24

ABSURD: list[Any] = [
    0, -1, 1, 2**31, 2**40, 2**63, 10**400, 1.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "16", "a" * 3000,
    True, False, None, [], [1], [None], ["x", 2**70], [[[]]], {}, {"a": {}}, {"rope_type": []},
    {"rope_type": "llama3"}, {"type": 5},
    {"rope_type": "yarn", "factor": "x"}, {"full_attention": []}, {"full_attention": {"rope_type": {}}},
    {"rope_type": "longrope", "long_factor": "abc", "short_factor": 3},
    {"rope_type": "longrope", "long_factor": [float("nan")] * 8, "short_factor": [float("inf")] * 8},
]  # fmt: skip
ANYWHERE = [
    "architectures", "model_type", "text_config", "rope_parameters", "rope_scaling", "rope_theta", "head_dim",
    "layer_types",
    "num_experts", "num_local_experts", "n_routed_experts", "moe_layers", "attn_config", "scoring_func",
    "quantization_config",
    "first_k_dense_replace", "partial_rotary_factor",
]  # fmt: skip


def cases() -> dict[str, dict[str, Any]]:
    """A checkpoint of every architecture."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(GOLDENS.glob("*.json")):
        case = json.loads(path.read_text())["checkpoint"]
        found.setdefault(find_architecture(case["config"]).name, case)
    return found


CASES = cases()


def test_every_architecture_has_a_golden():
    assert CASES.keys() == {architecture.name for architecture in architectures()}


@pytest.mark.parametrize("name", CASES)
def test_absurd_values_are_refused_or_do_no_harm(name: str):
    case = CASES[name]
    tensors = {name: memory_tensor(tensor_values(name, kind[1]), name) for name, kind in case["tensors"].items()}
    keys = sorted({*case["config"], *ANYWHERE})
    refusals = 0
    for place, key in enumerate(keys):
        for value in ABSURD[place % 11 :: 11]:  # of all values of all keys some, but others for each
            config = {**case["config"], key: value}
            try:
                architecture = find_architecture(config)
                architecture.tensors(tensors, config)
                architecture.metadata(config)
            except QuantcliError as error:
                refusals += 1
                assert "\n" not in error.message
                assert len(error.message) < 6000
    assert refusals


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_attention_heads", "head_dim", "vocab_size", "num_local_experts"])
def test_a_huge_number_takes_no_memory(key: str):
    case = CASES["mixtral"]
    tensors = {name: memory_tensor(tensor_values(name, kind[1]), name) for name, kind in case["tensors"].items()}
    tracemalloc.start()
    try:
        config = {**case["config"], key: 2**40}
        with pytest.raises(QuantcliError):
            find_architecture(config).tensors(tensors, config)
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()
