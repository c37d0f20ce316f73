"""The vocabulary in GGUF metadata: the keys `tokenizer.*` and the token types.

The converter writes them, the tokenizer reads them. Source: the GGUF specification and `llama-arch.cpp` of llama.cpp.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class TokenType(IntEnum):
    """The type of a token, by its number in `tokenizer.ggml.token_type` and in SentencePiece's piece types."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def _alphabet() -> dict[str, int]:
    """GPT-2's byte alphabet: printable characters of Latin-1 are themselves, other bytes are mapped from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


BYTES: Final = _alphabet()
"""Character of GPT-2's byte alphabet, used by byte-level vocabularies -> byte."""

WORD_START: Final = "\N{LOWER ONE EIGHTH BLOCK}"
"""The character for a space in SentencePiece, and in GGUF for WordPiece."""

MODEL: Final = "tokenizer.ggml.model"
"""The algorithm: `llama` (SentencePiece BPE), `gpt2` (byte-level BPE), `bert` (WordPiece), `t5` (unigram)."""

PRE_TOKENIZER: Final = "tokenizer.ggml.pre"
"""The name of a byte-level BPE's pre-tokenizer, which splits a text before the merges."""

TOKENS: Final = "tokenizer.ggml.tokens"
SCORES: Final = "tokenizer.ggml.scores"
TOKEN_TYPES: Final = "tokenizer.ggml.token_type"
MERGES: Final = "tokenizer.ggml.merges"
TOKEN_TYPE_COUNT: Final = "tokenizer.ggml.token_type_count"
"""The number of BERT's segment types, which are unrelated to `TokenType`."""

ADD_SPACE_PREFIX: Final = "tokenizer.ggml.add_space_prefix"
REMOVE_EXTRA_WHITESPACE: Final = "tokenizer.ggml.remove_extra_whitespaces"
PRECOMPILED_CHARACTER_MAP: Final = "tokenizer.ggml.precompiled_charsmap"
NORMALIZER_LOWERCASE: Final = "tokenizer.ggml.normalizer.lowercase"
NORMALIZER_STRIP_ACCENTS: Final = "tokenizer.ggml.normalizer.strip_accents"

CHAT_TEMPLATE: Final = "tokenizer.chat_template"
"""The default chat template. A named one has this key, a dot and its name."""

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
"""Role of a special token -> key of the flag whether encoding a text adds it."""

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
"""Texts of end-of-turn tokens, for files that do not name one."""

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
"""Texts of end-of-generation (EOG) tokens."""
