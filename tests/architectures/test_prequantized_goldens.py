"""Whole models whose checkpoints are already quantized, against what the reference converter makes of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import write_checkpoint

from quantcli.architectures.loader import find_architecture
from quantcli.architectures.transforms import as_float32
from quantcli.conversion.metadata.general import general_metadata
from quantcli.formats.checkpoint.checkpoint import open_checkpoint
from quantcli.formats.prequantized import decoded_checkpoint
from quantcli.tensors.tensor import Tensor

GOLDENS = Path(__file__).parents[1] / "golden/prequantized"
CASES = {path.stem: json.loads(path.read_text()) for path in sorted(GOLDENS.glob("*.json"))}


def described(tensor: Tensor) -> list[Any]:
    """As the goldens say it, who have in F32 what is not MXFP4."""
    tensor = tensor if tensor.type.is_quantized else as_float32(tensor)
    return [tensor.name, tensor.type.name, list(tensor.shape), hashlib.sha256(tensor.load().tobytes()).hexdigest()]


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference_converter(case: str, tmp_path: Path) -> None:
    golden: dict[str, Any] = CASES[case]
    with open_checkpoint(write_checkpoint(tmp_path, golden["checkpoint"])) as opened:
        checkpoint = decoded_checkpoint(opened)
        architecture = find_architecture(checkpoint.config)
        tensors = architecture.tensors(checkpoint.tensors, checkpoint.config)
        found = [described(tensor) for tensor in tensors]
        metadata = general_metadata(checkpoint, architecture.gguf, tensors)
    assert sorted(found) == sorted(golden["f32"]["tensors"])
    expected = {key: value for key, _, value in golden["f32"]["metadata"]}
    assert {key: field.value for key, field in metadata.items()}.items() <= expected.items()
    assert "general.size_label" in metadata
