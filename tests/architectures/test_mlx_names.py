"""The checkpoints of the goldens as mlx-lm saves them, under its names, become the reference's tensors all the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory import memory_tensor
from tiny_checkpoint import write_checkpoint

from quantcli.architectures.loader import find_architecture
from quantcli.architectures.transforms import as_float32
from quantcli.core.errors import ModelError
from quantcli.formats.checkpoint.checkpoint import open_checkpoint
from quantcli.formats.prequantized import decoded_checkpoint
from quantcli.formats.prequantized.mlx_names import with_pytorch_names

GOLDENS = Path(__file__).parents[1] / "golden"
RENAMED = [
    "deepseek", "deepseek2", "deepseek2-lite", "deepseek3", "dots1", "falcon-mamba", "gemma2", "gemma3",
    "gemma3-vision", "glm4moe-not-ahead", "granite4moe", "granitehybrid", "granitehybrid-dense", "granitemoe",
    "lfm2", "lfm2moe", "llama-gqa", "llama4", "llama4-vision", "mamba", "mamba2", "mistral3", "mixtral", "olmoe",
    "phi3", "phimoe-plain", "qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "qwen3vl", "smollm3",
]  # fmt: skip


class Lenient:
    """What `sanitize` reads of a model that mlx-lm cannot make of so small a configuration: its values, or None."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getattr__(self, name: str) -> Any:
        value = self._values.get(name)
        return self if name in ("args", "language_model") else Lenient(value) if isinstance(value, dict) else value


def sanitized(directory: Path, config: dict[str, Any]) -> None:
    """Have the tensors of `directory` as mlx-lm would save them."""
    mx = pytest.importorskip("mlx.core", reason="the names are given by mlx-lm")
    classes = pytest.importorskip("mlx_lm.utils", reason="the names are given by mlx-lm")._get_classes
    model, arguments = classes(dict(config))
    weights = mx.load(str(directory / "model.safetensors"))
    experts = next((config[key] for key in config if key.endswith("_experts") and "shared" not in key), None)
    filled = {"num_experts": experts, "num_local_experts": experts, "use_moe": experts, "first_k_dense_replace": 1}
    try:
        made = model(arguments.from_dict(dict(config)))
    except (TypeError, AttributeError, KeyError):
        made = Lenient({**filled, **config})
    if hasattr(model, "sanitize"):
        weights = model.sanitize(made, weights)
    weights = {name: mx.contiguous(array) for name, array in weights.items()}
    mx.eval(list(weights.values()))
    (directory / "model.safetensors").unlink()
    mx.save_safetensors(str(directory / "model.safetensors"), weights, {"format": "mlx"})


def found(directory: Path) -> dict[str, list[Any]]:
    with open_checkpoint(directory) as opened:
        checkpoint = decoded_checkpoint(opened)
        tensors = find_architecture(checkpoint.config).tensors(checkpoint.tensors, checkpoint.config)
        return {t.name: [list(t.shape), hashlib.sha256(as_float32(t).load().tobytes()).hexdigest()] for t in tensors}


@pytest.mark.parametrize("name", RENAMED)
def test_names_of_mlx_lm(name: str, tmp_path: Path) -> None:
    golden = json.loads((GOLDENS / "architectures" / f"{name}.json").read_text())
    directory = write_checkpoint(tmp_path, golden["checkpoint"])
    sanitized(directory, json.loads((directory / "config.json").read_text()))
    assert found(directory) == {key: [shape, digest] for key, _, shape, digest in golden["f32"]["tensors"]}


@pytest.mark.parametrize("name", ["deepseek3", "dots1", "gemma3", "granitemoe", "lfm2moe", "mixtral", "phi3", "qwen3moe"])
def test_quantized_under_names_of_mlx_lm(name: str, tmp_path: Path) -> None:
    """What MLX quantizes becomes what it dequantizes: stacks of experts and halves of DeepSeek's projections too."""
    golden = json.loads((GOLDENS / "architectures" / f"{name}.json").read_text())
    directory = write_checkpoint(tmp_path, golden["checkpoint"])
    config = json.loads((directory / "config.json").read_text())
    sanitized(directory, config)
    mx = pytest.importorskip("mlx.core")
    path = directory / "model.safetensors"
    quantized, decoded = {}, {}
    for key, weight in mx.load(str(path)).items():
        stem = key.removesuffix(".weight")
        if weight.ndim > 1 and weight.shape[-1] % 32 == 0 and stem != key and "conv" not in key:
            parts = dict(zip(("weight", "scales", "biases"), mx.quantize(weight, 32, 6), strict=True))
            quantized |= {f"{stem}.{part}": array for part, array in parts.items()}
            words, *others = parts.values()
            decoded[key] = mx.dequantize(words, *(x.astype(mx.float32) for x in others), 32, 6)
        else:
            quantized[key] = decoded[key] = weight
    assert any(key.endswith(".scales") for key in quantized)
    digests = []
    for tensors, settings in ((decoded, {}), (quantized, {"quantization": {"group_size": 32, "bits": 6}})):
        (directory / "config.json").write_text(json.dumps({**config, **settings}))
        path.unlink()
        mx.save_safetensors(str(path), tensors)
        digests.append(found(directory))
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("name", "parent", "parts"),
    [
        ("qwen3moe", "mlp", {"gate_proj": "gate_proj", "down_proj": "down_proj", "up_proj": "up_proj"}),
        ("mixtral", "block_sparse_moe", {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}),
    ],
)
def test_experts_stacked_by_hand(name: str, parent: str, parts: dict[str, str], tmp_path: Path) -> None:
    """The same without mlx-lm: a stack of a layer's experts in place of each."""
    golden = json.loads((GOLDENS / "architectures" / f"{name}.json").read_text())
    with open_checkpoint(write_checkpoint(tmp_path, golden["checkpoint"])) as opened:
        arrays = {key: as_float32(tensor).load() for key, tensor in opened.tensors.items()}
        config = opened.config
    stacked: dict[str, np.ndarray] = {key: array for key, array in arrays.items() if ".experts." not in key}
    for key in arrays:
        if f".{parent}.experts.0." in key:
            _, part, _ = key.rsplit(".", 2)
            every = [key.replace(".experts.0.", f".experts.{i}.") for i in range(len(arrays))]
            new = key.replace(f".experts.0.{part}", f".switch_mlp.{parts[part]}")
            stacked[new] = np.stack([arrays[one] for one in every if one in arrays])
    tensors = with_pytorch_names({key: memory_tensor(array, key) for key, array in stacked.items()})
    made = find_architecture(config).tensors(tensors, config)
    expected = {key: digest for key, _, _, digest in golden["f32"]["tensors"]}
    assert {t.name: hashlib.sha256(as_float32(t).load().tobytes()).hexdigest() for t in made} == expected


def test_a_stack_that_is_there_under_both_names() -> None:
    one = memory_tensor(np.zeros((2, 3, 4), np.float32), "x.experts.up_proj.weight")
    two = memory_tensor(np.zeros((2, 3, 4), np.float32), "x.switch_mlp.up_proj.weight")
    with pytest.raises(ModelError, match=r"x\.experts\.up_proj\.weight twice, also as x\.switch_mlp\.up_proj\.weight"):
        with_pytorch_names({tensor.name: tensor for tensor in (one, two)})


def test_mxfp4_of_gpt_oss(tmp_path: Path) -> None:
    """Of its experts mlx-lm keeps the very bits, in halves that the original has interleaved."""
    golden = json.loads((GOLDENS / "prequantized" / "mxfp4.json").read_text())
    directory = write_checkpoint(tmp_path, golden["checkpoint"])
    config = json.loads((directory / "config.json").read_text())
    sanitized(directory, config)
    config["quantization"] = config["quantization_config"] = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    (directory / "config.json").write_text(json.dumps(config))
    with open_checkpoint(directory) as opened:
        checkpoint = decoded_checkpoint(opened)
        tensors = find_architecture(checkpoint.config).tensors(checkpoint.tensors, checkpoint.config)
        made = [t if t.type.is_quantized else as_float32(t) for t in tensors]
        digests = {t.name: [t.type.name, list(t.shape), hashlib.sha256(t.load().tobytes()).hexdigest()] for t in made}
    assert digests == {key: rest for key, *rest in golden["f32"]["tensors"]}
