"""A checkpoint's tokenizer to GGUF metadata: every key `tokenizer.*`, as llama.cpp's converter writes them."""

from __future__ import annotations

from quantcli.conversion.vocabulary.convert import vocabulary_metadata

__all__ = ["vocabulary_metadata"]
