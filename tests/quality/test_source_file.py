"""A checkpoint run as it lies is the GGUF file that would be made of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoint import write_checkpoint

from quantcli.conversion.convert import convert
from quantcli.conversion.source import open_source
from quantcli.quality.evaluate import evaluate
from quantcli.quality.source_file import SourceFile
from quantcli.runner.cache import Cache
from quantcli.runner.load import LoadedModel, load_model, prepare_model

EXAMPLE = Path(__file__).parents[2] / "examples" / "storyteller"
ARCHITECTURES = Path(__file__).parents[1] / "golden" / "architectures"
TOKENS = [1, 419, 436, 261, 396, 300, 7, 12]


def logits(loaded: LoadedModel) -> np.ndarray:
    return loaded.model.forward(TOKENS, Cache(loaded.model.sizes, 16, "f32"), every=True)


def opened(path: Path) -> LoadedModel:
    with open_source(path) as source:
        return prepare_model(SourceFile.of(source))


@pytest.fixture
def checkpoint(tmp_path, golden):
    """Writes the checkpoint of an architecture's golden case, its BF16 tensors in another type."""

    def write(name: str, dtype: str) -> Path:
        description = json.loads((ARCHITECTURES / f"{name}.json").read_text())["checkpoint"]
        description["tensors"] = {
            key: [dtype if kind == "BF16" else kind, shape] for key, (kind, shape) in description["tensors"].items()
        }
        place = write_checkpoint(tmp_path, description)
        tokenizer = golden / "stories260K" / "tokenizer.model"
        (place / "tokenizer.model").write_bytes(tokenizer.read_bytes())
        return place

    return write


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("name", ["llama-gqa", "mixtral", "deepseek2-lite"])
def test_logits_are_those_of_the_gguf_file(checkpoint, tmp_path, name, dtype):
    place = checkpoint(name, dtype)
    convert(place, dtype, tmp_path / "model.gguf")
    written, direct = load_model(tmp_path / "model.gguf"), opened(place)
    assert {tensor.type.name for tensor in (direct.model.embedding, direct.model.output)} == {dtype}
    np.testing.assert_array_equal(logits(direct), logits(written))
    assert direct.parameters == written.parameters
    assert direct.model.weights_bytes == written.model.weights_bytes


def test_what_lies_ready_stays_in_its_file(tmp_path):
    with open_source(EXAMPLE) as source:
        file = SourceFile.of(source)
        mapped = {name: file.map(tensor) for name, tensor in source.tensors.items()}
        for name, rows in mapped.items():
            np.testing.assert_array_equal(rows.reshape(-1), source.tensors[name].load().view(np.uint8).reshape(-1))
            assert not rows.flags.writeable
    owned = {name for name, rows in mapped.items() if rows.base is None or rows.base.base is None}
    assert "blk.0.attn_q.weight" in owned  # permuted
    assert not {"token_embd.weight", "blk.0.ffn_down.weight", "blk.1.attn_v.weight"} & owned
    assert int(mapped["blk.0.ffn_down.weight"][-1, -1]) >= 0  # the file is closed


def test_a_checkpoint_has_its_tokenizer_and_is_evaluated_as_it_lies(tmp_path):
    text = (EXAMPLE.parents[1] / "tests" / "runner" / "test_model.py").read_text()[:6000]
    direct = opened(EXAMPLE)
    kind = direct.model.embedding.type.name
    convert(EXAMPLE, kind, tmp_path / "model.gguf")
    scores = [evaluate(loaded, text, context=64, chunks=2) for loaded in (direct, load_model(tmp_path / "model.gguf"))]
    assert scores[0] == scores[1]
