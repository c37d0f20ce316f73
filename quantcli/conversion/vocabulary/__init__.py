"""A checkpoint's tokenizer to GGUF metadata: every key `tokenizer.*`, as llama.cpp's converter writes them."""

from __future__ import annotations

from quantcli.conversion.vocabulary.convert import LLAMA_RULES, VocabularyRules, vocabulary_metadata

__all__ = ["LLAMA_RULES", "VocabularyRules", "vocabulary_metadata"]
