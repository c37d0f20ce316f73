"""Tokenizers, as the metadata of a GGUF file define them.

`core` has what all algorithms share (special tokens, BOS and EOS) and the table of algorithms. Each algorithm has a module
of its own.
"""

from __future__ import annotations

from quantcli.runner.text.tokenizer.core import StreamDecoder, Tokenizer, load_tokenizer

__all__ = ["StreamDecoder", "Tokenizer", "load_tokenizer"]
