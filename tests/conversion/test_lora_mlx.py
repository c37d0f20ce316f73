"""Adapters of mlx-lm: merged as its own `fuse` does it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quantcli.architectures.loader import find_architecture
from quantcli.architectures.transforms import as_float32
from quantcli.conversion.lora.gguf_adapter import convert_adapter
from quantcli.conversion.lora.merge import AdapterRequest, merged
from quantcli.core.errors import FormatError, UnsupportedError
from quantcli.formats.adapters import open_adapter
from quantcli.formats.checkpoint.checkpoint import open_checkpoint
from quantcli.formats.gguf.reader import open_gguf

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "golden"), str(TESTS)]

from lora_cases import base  # noqa: E402
from tiny_checkpoint import tensor_values, write_checkpoint  # noqa: E402

Arrays = dict[str, NDArray[np.float32]]
V, EMBEDDING = "model.layers.1.self_attn.v_proj", "model.embed_tokens"
SCALE = 2.5


def settings(kind: str = "lora", **parameters: Any) -> dict[str, Any]:
    """An adapter_config.json as `mlx_lm.lora` writes it, but for what only its trainer reads."""
    lora = {"rank": 4, "scale": SCALE, "dropout": 0.0, **parameters}
    return {"fine_tune_type": kind, "num_layers": 16, "lora_parameters": lora}


def write(place: Path, tensors: Arrays, config: dict[str, Any]) -> Path:
    """adapters.safetensors and adapter_config.json."""
    directory = place / "mlx-adapter"
    directory.mkdir()
    header, data = {}, bytearray()
    for name, array in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    text = json.dumps(header).encode()
    (directory / "adapters.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def matrices(module: str, a: list[int], b: list[int]) -> Arrays:
    return {f"{module}.{name}": tensor_values(f"{module}.{name}", shape) for name, shape in (("lora_a", a), ("lora_b", b))}


def merge(model: Path, adapter: Path) -> Arrays:
    """The tensors that a merge changes."""
    requests = [AdapterRequest(adapter)]
    with open_checkpoint(model) as opened, merged(opened, find_architecture(opened.config), requests) as view:
        changed = {name: tensor for name, tensor in view.tensors.items() if tensor is not opened.tensors.get(name)}
        return {name: as_float32(tensor).load() for name, tensor in changed.items()}


def test_linear_layers_and_embeddings(tmp_path: Path) -> None:
    tensors = {**matrices(V, [16, 4], [4, 8]), **matrices(EMBEDDING, [40, 4], [4, 16])}
    model, adapter = write_checkpoint(tmp_path, base(dtype="F32")), write(tmp_path, tensors, settings())
    found = merge(model, adapter)
    linear = tensor_values(f"{V}.weight", [8, 16]) + SCALE * (tensors[f"{V}.lora_a"] @ tensors[f"{V}.lora_b"]).T
    table = tensors[f"{EMBEDDING}.lora_a"] @ tensors[f"{EMBEDDING}.lora_b"]
    np.testing.assert_allclose(found[f"{V}.weight"], linear, rtol=1e-5, atol=1e-6)
    embedding = tensor_values(f"{EMBEDDING}.weight", [40, 16]) + SCALE * table
    np.testing.assert_allclose(found[f"{EMBEDDING}.weight"], embedding, rtol=1e-5, atol=1e-6)
    assert len(found) == 2


def test_dora(tmp_path: Path) -> None:
    lengths = np.linspace(1, 2, 8, dtype=np.float32)
    tensors = {**matrices(V, [16, 4], [4, 8]), f"{V}.m": lengths}
    found = merge(write_checkpoint(tmp_path, base(dtype="F32")), write(tmp_path, tensors, settings("dora")))[f"{V}.weight"]
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), lengths, rtol=1e-5)
    moved = tensor_values(f"{V}.weight", [8, 16]) + SCALE * (tensors[f"{V}.lora_a"] @ tensors[f"{V}.lora_b"]).T
    moved *= (lengths / np.linalg.norm(moved, axis=1))[:, None]
    np.testing.assert_allclose(found, moved, rtol=1e-4, atol=1e-6)


def test_stacked_experts(tmp_path: Path) -> None:
    module = "model.layers.0.mlp.switch_mlp.gate_proj"
    tensors = matrices(module, [3, 4, 16], [3, 24, 4])
    with open_adapter(write(tmp_path, tensors, settings())) as adapter:
        assert list(adapter.pairs) == [f"model.layers.0.mlp.experts.{expert}.gate_proj.weight" for expert in range(3)]
        for expert, pair in enumerate(adapter.pairs.values()):
            assert pair.shape == (24, 16)
            np.testing.assert_array_equal(pair.a.load(), tensors[f"{module}.lora_a"][expert])
            np.testing.assert_array_equal(pair.b.load(), tensors[f"{module}.lora_b"][expert])


def test_whole_weights(tmp_path: Path) -> None:
    tensors = {f"{V}.weight": tensor_values("new", [8, 16])}
    found = merge(write_checkpoint(tmp_path, base(dtype="F32")), write(tmp_path, tensors, {"fine_tune_type": "full"}))
    np.testing.assert_array_equal(found[f"{V}.weight"], tensors[f"{V}.weight"])


def test_it_becomes_a_gguf_adapter(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path, base(dtype="F32"))
    tensors = matrices(V, [16, 4], [4, 8])
    output = convert_adapter(write(tmp_path, tensors, settings()), "F32", tmp_path / "out.gguf", base=model).output
    with open_gguf(output) as file:
        assert file.get("adapter.lora.alpha") == SCALE * 4
        a, b = (file.tensors[f"blk.1.attn_v.weight.lora_{half}"].load() for half in "ab")
    np.testing.assert_array_equal(a, tensors[f"{V}.lora_a"].T)
    np.testing.assert_array_equal(b, tensors[f"{V}.lora_b"].T)


@pytest.mark.parametrize(
    ("tensors", "config", "error", "what"),
    [
        (matrices(V, [16, 4], [4, 8]), settings(scale="2"), FormatError, "the scale in lora_parameters is '2'"),
        (matrices(V, [16, 4], [4, 8]), settings(scale=float("nan")), FormatError, "the scale in lora_parameters is nan"),
        (matrices(V, [16, 4], [4, 8]), {"fine_tune_type": "lora"}, FormatError, "the scale in lora_parameters is None"),
        (matrices(V, [16, 4], [5, 8]), settings(), FormatError, r"matrices \[16, 4\] and \[5, 8\], expected"),
        ({f"{V}.lora_a": np.ones((16, 4), np.float32)}, settings(), FormatError, "no lora_b"),
        (matrices("a.switch_mlp.b", [3, 4, 16], [2, 24, 4]), settings(), FormatError, "expected .experts, rank, in."),
        ({}, settings(), FormatError, "no tensors in it"),
        ({}, settings("ia3"), UnsupportedError, "fine_tune_type is 'ia3', expected one of lora, dora, full"),
    ],
)
def test_faults(tensors: Arrays, config: dict[str, Any], error: type[Exception], what: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=what):
        open_adapter(write(tmp_path, tensors, config))


@pytest.mark.parametrize("kind", ["LoRALinear", "DoRALinear", "LoRAEmbedding"])
def test_the_merge_is_mlx_lm_s(kind: str, tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core", reason="the adapters are mlx-lm's")
    nn = pytest.importorskip("mlx.nn")
    layers = pytest.importorskip("mlx_lm.tuner.dora" if kind.startswith("DoRA") else "mlx_lm.tuner.lora")
    module, shape = (EMBEDDING, [40, 16]) if kind.endswith("Embedding") else (V, [8, 16])
    weight = mx.array(tensor_values(f"{module}.weight", shape))
    plain = nn.Embedding(*shape) if kind.endswith("Embedding") else nn.Linear(16, 8, bias=False)
    plain.weight = weight
    layer = getattr(layers, kind).from_base(plain, r=4, scale=SCALE)
    layer.lora_b = mx.array(tensor_values("b", list(layer.lora_b.shape)))
    names = ["lora_a", "lora_b"] + (["m"] if kind.startswith("DoRA") else [])
    tensors = {f"{module}.{name}": np.array(getattr(layer, name)) for name in names}
    adapter = write(tmp_path, tensors, settings("dora" if kind.startswith("DoRA") else "lora"))
    found = merge(write_checkpoint(tmp_path, base(dtype="F32")), adapter)[f"{module}.weight"]
    np.testing.assert_allclose(found, np.array(layer.fuse().weight), rtol=1e-5, atol=1e-6)
