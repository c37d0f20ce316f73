"""Texts to token ids and back, as the vocabulary in a GGUF file defines them.

`core` holds what all algorithms share, special tokens and what surrounds a text, and the table of algorithms; each of them
has a module of its own.
"""

from __future__ import annotations

from quantcli.runner.text.tokenizer.core import StreamDecoder, Tokenizer, load_tokenizer

__all__ = ["StreamDecoder", "Tokenizer", "load_tokenizer"]
