"""Weights quantized as they are loaded are those of a file quantized before."""

from __future__ import annotations

import numpy as np
import pytest

from quantcli.conversion.convert import convert
from quantcli.core.block_types import TYPES
from quantcli.core.errors import UsageError
from quantcli.runner.cache import Cache
from quantcli.runner.load import load_model
from quantcli.runner.quantize_on_load import can_quantize, packing_type

TOKENS = [1, 419, 436, 261, 396]


def logits(loaded):
    return loaded.model.forward(TOKENS, Cache(loaded.model.sizes, 8), every=True)


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack")
    for kind in ("F32", "BF16", "Q8_0"):
        convert(golden.parents[1] / "examples" / "storyteller", kind, folder / f"{kind}.gguf")
    return folder


def test_a_packed_model_is_the_quantized_file(folder, monkeypatch):
    monkeypatch.setattr("quantcli.runner.quantize_on_load.CHUNK", 5000)  # several to a matrix, the last not whole
    quantized = load_model(folder / "Q8_0.gguf")
    for kind in ("F32", "BF16"):
        packed = load_model(folder / f"{kind}.gguf", TYPES["Q8_0"])
        np.testing.assert_array_equal(logits(packed), logits(quantized))
        assert packed.model.weights_bytes == quantized.model.weights_bytes
        assert packed.parameters == quantized.parameters


def test_rows_that_do_not_fit_and_what_is_small_already_stay(folder, stories):
    # Of its rows of 64 and 172 numbers, blocks of 32 divide the first.
    model = load_model(stories, TYPES["Q4_0"]).model
    assert {layer.mixer.projections[0].type.name for layer in model.layers} == {"Q4_0"}
    assert {layer.mlp.down.type.name for layer in model.layers} == {"F32"}
    assert np.isfinite(model.forward(TOKENS, Cache(model.sizes, 8))).all()
    quantized = load_model(folder / "Q8_0.gguf", TYPES["Q4_0"])
    assert quantized.model.embedding.type.name == "Q8_0"
    assert load_model(folder / "BF16.gguf", TYPES["F32"]).model.embedding.type.name == "BF16"
    assert can_quantize(TYPES["F16"], 256, TYPES["Q4_K"])
    assert not can_quantize(TYPES["F16"], 128, TYPES["Q4_K"])


@pytest.mark.parametrize(
    ("name", "message"),
    [("Q9", "unknown tensor type 'Q9'"), ("Q4_K_M", "did you mean Q4_K"), ("IQ2_XXS", "importance"), ("I8", "'I8'")],
)
def test_types_that_weights_cannot_have(name, message):
    with pytest.raises(UsageError, match=message):
        packing_type(name)
