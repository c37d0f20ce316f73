"""Every golden checkpoint goes to GGUF in F32 and back: the same tensors bit for bit, and the same hyperparameters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import write_checkpoint

from quantcli.architectures.inverse_config import differences, original_config
from quantcli.architectures.inverse_mapping import original_tensors, refuse_without_inverse
from quantcli.architectures.loader import Architecture, find_architecture
from quantcli.architectures.mapping import _is_ignored, _normalized_names
from quantcli.architectures.transforms import TRANSFORMS, as_float32, reshape
from quantcli.core.errors import ModelError, QuantcliError, UnsupportedError
from quantcli.formats.checkpoint.checkpoint import Checkpoint, open_checkpoint
from quantcli.formats.gguf.spec import Metadata, u32
from quantcli.formats.gguf.vocabulary import SPECIAL_TOKENS
from quantcli.tensors.tensor import Tensor

GOLDENS = Path(__file__).parents[1] / "golden/architectures"
CASES = {path.stem: json.loads(path.read_text()) for path in sorted(GOLDENS.glob("*.json"))}

REFUSED = {
    "negative_exp .* has no inverse: several numbers have the same exponential": (
        "bamba", "falcon-mamba", "granitehybrid", "granitehybrid-dense", "mamba", "mamba-biases", "mamba-library",
        "mamba-original", "mamba-untied", "mamba2", "mamba2-biases", "mamba2-groups", "mamba2-original",
    ),
    "position_embd.weight.*: the rest of the checkpoint's tensor is not in the GGUF file": (
        "roberta", "roberta-classifier", "roberta-sparse-config", "roberta-two-labels", "xlm-roberta",
        "xlm-roberta-padding", "xlm-roberta-reranker",
    ),
}  # fmt: skip
"""What cannot be exported, and why."""

UNSOLVED = {
    "cohere2moe", "cohere2moe-nothing-shared", "cohere2moe-rms", "hunyuan-moe", "hy-v3",
}  # fmt: skip
"""What cannot be exported because config.json is not found for it: the sizes of experts and of dense layers are keys that
depend on each other."""

OTHER_LAYOUT = {
    "bert-masked-lm", "chatglm", "chatglm-long", "ernie4_5-fused", "jina-bert-v2", "jina-bert-v2-code", "mistral4",
    "qwen2moe-fused",
    "qwen3moe-fused", "qwen3vlmoe", "t5-old-class", "t5encoder", "umt5", "umt5-bare",
}  # fmt: skip
"""Cases whose checkpoint has some tensors in another layout, or several times, than export writes."""

INEXACT = {"gemma-f16", "flan-t5", "mt5", "t5-old-class", "t5encoder"}
"""In half precision, adding one to a norm's weight has rounded it. These T5 have three copies of the embeddings, which are
not the same here."""

LOST = {
    "cohere2-yarn": {"rope.scaling"}, "deepseek-yarn": {"rope.scaling"},
    "glm4v": {"attention"}, "deepseek2-raw-config": {"expert_weights_scale"}, "hunyuan-dense": {"rope.scaling"},
    "llama3-odd": {"rope_freqs.weight"}, "llama-null-theta": {"rope.freq_base"},
    "llama4-full-attention": {"attention.sliding_window"}, "mistral-null-keys": {"attention", "rope.freq_base"},
    "ministral3": {"attention.temperature_scale", "rope.scaling.yarn_log_multiplier"},
    "ministral3-sparse-config": {"attention.temperature_scale", "rope.scaling.yarn_log_multiplier"},
    "qwen3vl": {"n_deepstack_layers"}, "qwen3vlmoe": {"n_deepstack_layers"},
    "stablelm-raw-config": {"use_parallel_residual"}, "modern-bert-nested-rope": {"rope"},
}  # fmt: skip
"""Hyperparameters that the exported config.json does not give as the file has them: `quantize export` names them."""


def reason(name: str) -> str | None:
    return next((why for why, names in REFUSED.items() if name in names), None)


@pytest.fixture
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Checkpoint]:
    with open_checkpoint(write_checkpoint(tmp_path, CASES[request.param]["checkpoint"])) as opened:
        yield opened


def in_gguf(checkpoint: Checkpoint) -> tuple[Architecture, dict[str, Tensor], Metadata, dict[str, Any]]:
    """The architecture, its tensors in F32, its metadata with the padding token's id, its hyperparameters."""
    architecture = find_architecture(checkpoint.config)
    found = architecture.tensors(checkpoint.tensors, checkpoint.config)
    scope = architecture.hyperparameters(checkpoint.config)
    metadata = architecture.metadata(checkpoint.config, 0)
    padding = scope.get("pad_token_id")
    if isinstance(padding, int) and padding >= 0:
        metadata[SPECIAL_TOKENS["pad"]] = u32(padding)
    return architecture, {tensor.name: stored(as_float32(tensor)) for tensor in found}, metadata, scope


def stored(tensor: Tensor) -> Tensor:
    """A tensor with the shape that it has in a file, which leaves out leading axes of length 1."""
    shape = tensor.shape
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return tensor if shape == tensor.shape else reshape(tensor, shape)


def same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and as_float32(one).load().tobytes() == as_float32(other).load().tobytes()


@pytest.mark.parametrize("checkpoint", sorted(UNSOLVED), indirect=True)
def test_what_is_not_solved_is_refused(checkpoint: Checkpoint):
    architecture, tensors, metadata, _ = in_gguf(checkpoint)
    with pytest.raises(QuantcliError):
        config = original_config(architecture, metadata, tensors)
        original_tensors(architecture.declaration, tensors, architecture.hyperparameters(config))


@pytest.mark.parametrize("checkpoint", [name for name in CASES if not reason(name) and name not in UNSOLVED], indirect=True)
def test_a_checkpoint_comes_back(checkpoint: Checkpoint, request: pytest.FixtureRequest):
    name = request.node.callspec.params["checkpoint"]
    architecture, tensors, metadata, scope = in_gguf(checkpoint)
    config = original_config(architecture, metadata, tensors)
    made = original_tensors(architecture.declaration, tensors, architecture.hyperparameters(config))
    found = {tensor.name: tensor for tensor in made}
    given, _ = _normalized_names(architecture.declaration, checkpoint.tensors)
    if name not in OTHER_LAYOUT:
        rows = architecture.declaration.ignore
        needed = [key for key in given if not any(_is_ignored(key, given[key], row, scope) for row in rows)]
        assert sorted(set(needed) - set(found)) == []
    if name not in INEXACT:
        assert [key for key in found if key in given and not same(found[key], given[key])] == []
    again = {tensor.name: stored(tensor) for tensor in architecture.tensors(found, config)}
    assert [key for key in tensors if key not in LOST.get(name, ()) and not same(tensors[key], again[key])] == []
    assert again.keys() <= tensors.keys()
    lost = set(differences(architecture, config, metadata, tensors).told)
    assert {key for key in lost if not any(key.startswith(known) for known in LOST.get(name, ()))} == set()
    assert bool(lost) == (name in LOST)


@pytest.mark.parametrize("checkpoint", [name for name in CASES if reason(name)], indirect=True)
def test_what_has_no_inverse_is_refused_with_the_reason(checkpoint: Checkpoint, request: pytest.FixtureRequest):
    architecture, tensors, metadata, _ = in_gguf(checkpoint)
    with pytest.raises((UnsupportedError, ModelError), match=reason(request.node.callspec.params["checkpoint"])):
        refuse_without_inverse(architecture.declaration, tensors)
        config = original_config(architecture, metadata, tensors)
        original_tensors(architecture.declaration, tensors, architecture.hyperparameters(config))


def test_a_transform_has_an_inverse_or_a_reason():
    assert [name for name, transform in TRANSFORMS.items() if (transform.undo is None) != bool(transform.why)] == []
