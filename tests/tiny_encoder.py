"""A tiny BERT of random weights with a vocabulary of words, which embeds text, in any type."""

from __future__ import annotations

from pathlib import Path

from tiny_model import write_model

from quantcli.formats.gguf.arrays import pack_strings
from quantcli.formats.gguf.spec import Field, ValueType, string, u32

LONGEST = 40
"""Tokens of the longest text, with those around it."""

WORDS = tuple(f"{first}{middle}{last}" for first in "bdfgklmn" for middle in "aeiou" for last in "bdfgklmnprst")[:508]


def write_encoder(
    place: Path, type_name: str, pooling: int = 1, words: tuple[str, ...] = WORDS, checkpoint: str = "bert"
) -> Path:
    """`place/TYPE/model.gguf`, which pools by the number of `pooling_type`. `checkpoint` is a BERT of `architectures/`."""
    texts = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"\u2581{word}" for word in words)]
    texts += [f"\u2581[unused{number}]" for number in range(512 - len(texts))]
    more = {
        "bert.pooling_type": u32(pooling),
        "tokenizer.ggml.model": string("bert"),
        "tokenizer.ggml.tokens": Field(ValueType.ARRAY, pack_strings(texts), ValueType.STRING),
        "tokenizer.ggml.token_type": Field(ValueType.ARRAY, [3] * 4 + [1] * (len(texts) - 4), ValueType.INT32),
        "tokenizer.ggml.bos_token_id": u32(2),
        "tokenizer.ggml.seperator_token_id": u32(3),
        "tokenizer.ggml.unknown_token_id": u32(1),
    }
    folder = place / type_name
    folder.mkdir(parents=True, exist_ok=True)
    return write_model(folder, checkpoint, {}, None, type_name, more)


def text_of_lines(count: int) -> str:
    """So many different lines of two to seven words, some of them alike."""
    lines = []
    for line in range(count):
        words = [WORDS[(line * 7 + place * place * 13) % len(WORDS)] for place in range(2 + line % 6)]
        lines.append(" ".join([*words, WORDS[line % len(WORDS)]]))
    return "\n".join(lines)
