"""Variations of every family against what the reference converter made of them: names, order, types, bytes, metadata."""

from __future__ import annotations

import hashlib
import json
import runpy
import struct
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import write_checkpoint

from quantcli.architectures.loader import find_architecture
from quantcli.architectures.transforms import as_float32
from quantcli.conversion.metadata.general import general_metadata
from quantcli.formats.checkpoint.checkpoint import Checkpoint, open_checkpoint
from quantcli.formats.gguf.spec import Metadata, ValueType
from quantcli.tensors.tensor import Tensor

GOLDENS = Path(__file__).parents[1] / "golden/architectures"


CASES = {path.stem: json.loads(path.read_text()) for path in sorted(GOLDENS.glob("*.json"))}


@pytest.fixture(params=CASES)
def golden(request: pytest.FixtureRequest) -> dict[str, Any]:
    return CASES[request.param]


def is_16_bit(golden: dict[str, Any]) -> bool:
    """Of an F32 checkpoint the reference makes 16-bit tensors by itself; quantcli keeps what it finds."""
    return all(dtype != "F32" for dtype, shape in golden["checkpoint"]["tensors"].values() if len(shape) > 1)


@pytest.fixture
def checkpoint(golden: dict[str, Any], tmp_path: Path):
    with open_checkpoint(write_checkpoint(tmp_path, golden["checkpoint"])) as opened:
        yield opened


def test_the_tables_say_what_the_goldens_were_made_of(monkeypatch: pytest.MonkeyPatch):
    """Every case is in one table, and its golden holds the same checkpoint."""
    monkeypatch.syspath_prepend(GOLDENS.parent)
    tables = [runpy.run_path(str(path))["CASES"] for path in sorted(GOLDENS.parent.glob("architecture_cases_*.py"))]
    cases = {name: json.loads(json.dumps(case)) for table in tables for name, case in table.items()}
    assert sum(len(table) for table in tables) == len(cases)
    assert cases == {name: golden["checkpoint"] for name, golden in CASES.items()}


def digest(tensor) -> str:
    return hashlib.sha256(tensor.load().tobytes()).hexdigest()


def test_tensors_in_float32(golden: dict[str, Any], checkpoint: Checkpoint):
    tensors = find_architecture(checkpoint.config).tensors(checkpoint.tensors, checkpoint.config)
    found = [[t.name, "F32", list(t.shape), digest(as_float32(t))] for t in tensors]
    assert found == golden["f32"]["tensors"]


@pytest.mark.parametrize("golden", [name for name, case in CASES.items() if is_16_bit(case)], indirect=True)
def test_tensors_in_their_own_type(golden: dict[str, Any], checkpoint: Checkpoint):
    tensors = find_architecture(checkpoint.config).tensors(checkpoint.tensors, checkpoint.config)
    assert [[t.name, t.type.name, list(t.shape), digest(t)] for t in tensors] == golden["auto"]["tensors"]


def plain(metadata: Metadata) -> list[list[Any]]:
    """As the goldens say it: key, types, value, but for the tokenizer; floats as their 32 bits hold them."""
    rows = []
    for key, field in metadata.items():
        if key.startswith("tokenizer."):
            continue
        types = [field.type.name] + ([field.element.name] if field.element is not None else [])
        value = struct.unpack("f", struct.pack("f", field.value))[0] if field.type is ValueType.FLOAT32 else field.value
        rows.append([key, types, value])
    return rows


def written(checkpoint: Checkpoint) -> tuple[list[Tensor], Metadata]:
    """The tensors of the GGUF file, and its metadata but for the vocabulary's."""
    architecture = find_architecture(checkpoint.config)
    tensors = architecture.tensors(checkpoint.tensors, checkpoint.config)
    metadata = (
        architecture.early_metadata(checkpoint.config)
        | general_metadata(checkpoint, architecture.gguf, tensors)
        | architecture.metadata(checkpoint.config, 0)
    )
    return tensors, metadata


def test_metadata(golden: dict[str, Any], checkpoint: Checkpoint):
    _, found = written(checkpoint)
    expected = [row for row in golden["f32"]["metadata"] if row[0] != "general.quantization_version"]
    assert plain(found) == [[key, types[:1] + types[-1:] * (types[0] == "ARRAY"), value] for key, types, value in expected]


ROPE = {"rope_type": "default", "rope_theta": 10000}
SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gpt2": ({"n_ctx": None}, {}),
    "gpt2-bare": ({"n_ctx": None}, {f"h.{layer}.attn.bias": ["F32", [1, 1, 128, 128]] for layer in range(2)}),
    "gptneox": ({"model_type": "gpt_neox", "rotary_pct": None, "rotary_emb_base": None,
                 "rope_parameters": {**ROPE, "partial_rotary_factor": 0.25}}, {}),
    "gptneox-sequential": ({"model_type": "gpt_neox", "rotary_pct": None, "rotary_emb_base": None,
                            "rope_parameters": {**ROPE, "partial_rotary_factor": 1.0}}, {}),
    "falcon-old": ({"architectures": ["FalconForCausalLM"], "model_type": "falcon", "n_head": None, "n_layer": None,
                    "num_attention_heads": 3, "num_hidden_layers": 2, "num_kv_heads": 3}, {}),
    "falcon-old-groups": ({"architectures": ["FalconForCausalLM"], "model_type": "falcon", "n_head": None, "n_layer": None,
                           "num_attention_heads": 4, "num_hidden_layers": 2, "n_head_kv": None, "num_kv_heads": 2,
                           "new_decoder_architecture": True}, {}),
    "modern-bert": ({"architectures": ["ModernBertForMaskedLM"], "layer_norm_eps": None}, {"decoder.bias": ["F32", [512]]}),
    "modern-bert-sparse-config": ({"layer_norm_eps": None}, {}),
    "granitehybrid": ({"layer_types": ["linear_attention", "full_attention", "linear_attention"]}, {}),
    "granite4": ({"layer_types": ["full_attention"] * 2}, {}),
    "dots1": ({"scoring_func": "noaux_tc"}, {}),
    "dots1-sparse-config": ({"scoring_func": None}, {}),
    "t5": ({"decoder_start_token_id": None}, {}),
}  # fmt: skip
"""Cases whose configuration, as transformers 5 or the hub has it now, the reference cannot read, or not with its tensors:
what is different there (None: a key that is absent), and tensors that are there besides."""


@pytest.mark.parametrize("name", SAME)
def test_what_the_reference_cannot_read_becomes_what_it_made_of_an_older_configuration(name: str, tmp_path: Path):
    case, (changes, more) = CASES[name], SAME[name]
    config = {key: value for key, value in {**case["checkpoint"]["config"], **changes}.items() if value is not None}
    tensors = dict(sorted({**case["checkpoint"]["tensors"], **more}.items()))
    directory = write_checkpoint(tmp_path, {**case["checkpoint"], "config": config, "tensors": tensors})
    with open_checkpoint(directory) as opened:
        architecture = find_architecture(opened.config)
        found = architecture.tensors(opened.tensors, opened.config)
        assert [[t.name, "F32", list(t.shape), digest(as_float32(t))] for t in found] == case["f32"]["tensors"]
        metadata = {key: value for key, _, value in plain(architecture.metadata(opened.config, 0))}
    prefixes = (f"{architecture.gguf}.", "general.file_type")
    assert metadata == {key: value for key, _, value in case["f32"]["metadata"] if key.startswith(prefixes)}
