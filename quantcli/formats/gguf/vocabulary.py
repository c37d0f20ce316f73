"""How a vocabulary is written in GGUF metadata: the keys `tokenizer.*` and the types a token can have.

The converter writes these and the tokenizer reads them. Source: the GGUF specification and `llama-arch.cpp` of llama.cpp.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class TokenType(IntEnum):
    """What a token is, by its number in `tokenizer.ggml.token_type`; the same numbers as SentencePiece's piece types."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def _alphabet() -> dict[str, int]:
    """GPT-2's character for each byte: the printable ones of Latin-1 stand for themselves, the rest follow from U+0100."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


BYTES: Final = _alphabet()
"""Character of GPT-2's alphabet, in which byte-level vocabularies are spelled -> byte."""

WORD_START: Final = "\N{LOWER ONE EIGHTH BLOCK}"
"""What SentencePiece, and GGUF for WordPiece, write for a space."""

MODEL: Final = "tokenizer.ggml.model"
"""The algorithm: `llama` (SentencePiece BPE), `gpt2` (byte-level BPE), `bert` (WordPiece), `t5` (unigram)."""

PRE_TOKENIZER: Final = "tokenizer.ggml.pre"
"""How byte-level BPE splits a text before it merges, by name."""

TOKENS: Final = "tokenizer.ggml.tokens"
SCORES: Final = "tokenizer.ggml.scores"
TOKEN_TYPES: Final = "tokenizer.ggml.token_type"
MERGES: Final = "tokenizer.ggml.merges"
TOKEN_TYPE_COUNT: Final = "tokenizer.ggml.token_type_count"
"""BERT's segment types, not `TokenType`."""

ADD_SPACE_PREFIX: Final = "tokenizer.ggml.add_space_prefix"
REMOVE_EXTRA_WHITESPACE: Final = "tokenizer.ggml.remove_extra_whitespaces"
PRECOMPILED_CHARACTER_MAP: Final = "tokenizer.ggml.precompiled_charsmap"
NORMALIZER_LOWERCASE: Final = "tokenizer.ggml.normalizer.lowercase"
NORMALIZER_STRIP_ACCENTS: Final = "tokenizer.ggml.normalizer.strip_accents"

CHAT_TEMPLATE: Final = "tokenizer.chat_template"
"""The default chat template; a named one is at this key, a dot and its name."""

CHAT_TEMPLATE_NAMES: Final = "tokenizer.chat_templates"

SPECIAL_TOKENS: Final = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    # The misspelling is the format's.
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
}
"""Role of a special token (as in `tokenizer_config.json`: `bos_token`, `eos_token`, ...) -> key of its id."""

ADD_SPECIAL_TOKENS: Final = {
    "bos": "tokenizer.ggml.add_bos_token",
    "eos": "tokenizer.ggml.add_eos_token",
    "sep": "tokenizer.ggml.add_sep_token",
}
"""Role of a special token -> key of the flag that says whether encoding a text adds it."""

END_OF_TURN_TEXTS: Final = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
)
"""Texts of the token that ends a turn, where the file does not name one."""

END_OF_MESSAGE_TEXTS: Final = ("<|eom_id|>",)

END_OF_GENERATION_TEXTS: Final = frozenset(
    {
        *END_OF_TURN_TEXTS,
        *END_OF_MESSAGE_TEXTS,
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "</s>",
        "[EOS]",
        "<eos>",
        "<turn|>",
        "<|tool_response>",
        "[e~[",
    }
)
"""Texts of tokens after which a model has nothing more to say."""
