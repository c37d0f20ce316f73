"""The tensors and hyperparameters of whole checkpoints against files the reference converter wrote of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantcli.architectures.loader import find_architecture
from quantcli.formats.checkpoint.checkpoint import open_checkpoint
from quantcli.formats.gguf.reader import open_gguf

FILE_TYPE_BF16 = 32


@pytest.fixture(scope="module")
def converted(shared: Path):
    with open_checkpoint(shared / "golden/llama-8x256") as checkpoint:
        architecture = find_architecture(checkpoint.config)
        with open_gguf(shared / "golden/llama-8x256.bf16.gguf") as reference:
            yield (
                architecture.tensors(checkpoint.tensors, checkpoint.config),
                architecture.metadata(checkpoint.config, FILE_TYPE_BF16),
                reference,
            )


def test_tensors_equal_the_reference_conversion(converted):
    tensors, _, reference = converted
    assert [(t.name, t.shape, t.type) for t in tensors] == [(t.name, t.shape, t.type) for t in reference.tensors.values()]
    for tensor in tensors:
        assert tensor.load().tobytes() == reference.tensors[tensor.name].load().tobytes(), tensor.name


def test_hyperparameters_equal_the_reference_conversion(converted):
    _, metadata, reference = converted
    expected = {
        key: field for key, field in reference.metadata.items() if key.startswith("llama.") or key == "general.file_type"
    }
    assert list(metadata) == list(expected)
    for key, field in metadata.items():
        assert field.type == expected[key].type, key
        assert field.value == pytest.approx(expected[key].value, rel=1e-7), key


@pytest.mark.parametrize("name", ["storyteller", "stories260K"])
def test_tied_checkpoints_have_no_output_tensor(shared: Path, name: str):
    with open_checkpoint(shared / "models" / name) as checkpoint:
        architecture = find_architecture(checkpoint.config)
        names = [tensor.name for tensor in architecture.tensors(checkpoint.tensors, checkpoint.config)]
    assert "token_embd.weight" in names
    assert "output.weight" not in names
