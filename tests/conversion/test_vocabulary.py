"""Vocabulary conversion against what llama.cpp's converter wrote."""

from __future__ import annotations

import numpy as np

from quantcli.conversion.vocabulary import vocabulary_metadata
from quantcli.formats.checkpoint import open_checkpoint
from quantcli.formats.gguf_reader import open_gguf


def test_equals_reference_conversion(shared):
    checkpoint = open_checkpoint(shared / "golden" / "llama-8x256")
    metadata = vocabulary_metadata(checkpoint, checkpoint.config["vocab_size"])
    with open_gguf(shared / "golden" / "llama-8x256.bf16.gguf") as expected:
        keys = [key for key in expected.metadata if key.startswith("tokenizer.")]
        assert list(metadata) == keys
        for key in keys:
            assert (metadata[key].type, metadata[key].element) == (
                expected.metadata[key].type,
                expected.metadata[key].element,
            )
            np.testing.assert_array_equal(metadata[key].value, expected.metadata[key].value)
