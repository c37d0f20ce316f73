from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from llama_quantize import reference_plan, write_hollow_model

from quantcli.conversion.metadata.output import quantized_metadata
from quantcli.conversion.plan import PlanOptions, make_plan
from quantcli.conversion.prune import parse_layers, prune_importance, prune_tensors, pruned_block_count, pruned_names
from quantcli.conversion.recipes import RECIPES
from quantcli.core.block_types import TYPES
from quantcli.core.errors import UsageError
from quantcli.formats.gguf.spec import Metadata, f32, replace_keys, string, u32
from quantcli.formats.gguf.writer import make_layout
from quantcli.formats.imatrix import Imatrix
from quantcli.tensors.tensor import TensorInfo

MODEL: Metadata = {
    "general.architecture": string("llama"),
    "llama.block_count": u32(12),
    "llama.context_length": u32(64),
    "llama.embedding_length": u32(256),
    "llama.feed_forward_length": u32(256),
    "llama.attention.head_count": u32(4),
    "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
}
NAMES = ["token_embd.weight", *(f"blk.{i}.{name}.weight" for i in range(12) for name in ("attn_v", "ffn_down"))]
TENSORS = {name: TensorInfo(name, (8, 256), TYPES["F32"]) for name in NAMES}


def test_layers_behind_move_up() -> None:
    names = pruned_names(["output.weight", "blk.0.a", "blk.1.a", "blk.2.a", "blk.3.a"], {0, 2})
    assert names == {"output.weight": "output.weight", "blk.1.a": "blk.0.a", "blk.3.a": "blk.1.a"}
    assert pruned_block_count("llama", names) == {"llama.block_count": u32(2)}


def test_layers_are_read() -> None:
    assert parse_layers("3, 7,11") == {3, 7, 11}


@pytest.mark.parametrize("text", ["", "a", "1,,2", "-1", "1.5"])
def test_malformed_layers(text: str) -> None:
    with pytest.raises(UsageError):
        parse_layers(text)


def test_layers_must_exist_and_one_must_stay() -> None:
    with pytest.raises(UsageError, match="no layer 12"):
        pruned_names(NAMES, {12})
    with pytest.raises(UsageError, match="no layer would be left"):
        pruned_names(NAMES, set(range(12)))


@pytest.mark.parametrize("layers", [[0], [11], [2, 3, 7], [0, 1, 10]])
def test_plans_and_headers_equal_the_reference(layers: list[int], tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="writes the model")
    llama_cpp = pytest.importorskip("llama_cpp", reason="is the reference")
    path, output = tmp_path / "model.gguf", tmp_path / "output.gguf"
    write_hollow_model(path, MODEL, list(TENSORS.values()), gguf)
    names = pruned_names(NAMES, layers)
    left = list(prune_tensors(TENSORS, names).values())
    whole = Imatrix("m.gguf", (), 1, {name: np.ones(256, np.float32) for name in NAMES})
    for recipe in ("Q4_K_M", "Q3_K_M", "Q4_0"):
        expected = reference_plan(
            llama_cpp, path, RECIPES[recipe], PlanOptions(importance=whole.sizes), output, prune=layers
        )
        plan = make_plan(left, MODEL, RECIPES[recipe], PlanOptions(importance=prune_importance(whole, names).sizes))
        assert [(planned.name, planned.type.name) for planned in plan] == expected
        metadata = quantized_metadata(MODEL, RECIPES[recipe])
        replace_keys(metadata, pruned_block_count("llama", names))
        header = make_layout(metadata, [planned.info for planned in plan]).header
        assert output.read_bytes()[: len(header)] == header
