"""Checkpoints without tensors whose tokenizers say things in every place and way they can be said, by kind of tokenizer."""

from __future__ import annotations

from typing import Any

import vocabulary_cases_byte_level as byte_level
import vocabulary_cases_ranks as ranks
import vocabulary_cases_sentencepiece as sentencepiece
import vocabulary_cases_unigram as unigram
import vocabulary_cases_word_piece as word_piece
from vocabulary_files import bert_config, config

CASES: dict[str, dict[str, Any]] = {**sentencepiece.CASES, **byte_level.CASES}
"""Cases of kinds that most architectures have: converted as the architecture of their configuration is."""

_KINDS = (word_piece, byte_level, unigram, sentencepiece, ranks)

KINDS: dict[str, dict[str, Any]] = {name: case for kind in _KINDS for name, case in kind.KINDS.items()}
"""Cases of kinds that few architectures have: converted by the rules of `RULES`."""

RULES: dict[str, dict[str, Any]] = {name: rules for kind in _KINDS for name, rules in kind.RULES.items()}
"""What the architecture files say of the vocabularies of `KINDS`."""

MODELS = {
    "llama-2": config(32000),
    "llama-3.2": config(128256),
    "mistral-v0.3": config(32768),
    "phi-3-mini": config(32064),
    "qwen2.5": config(152064),
    "gpt2": config(50257),
    "starcoder2": config(49280),
    "deepseek-coder": config(32256),
    "falcon": config(65024),
    "phi-2": config(51200),
    "gpt-neox-20b-pii-special": config(50688),
    "bert-uncased-MiniLM": bert_config(30522, pad_token_id=0),
    "roberta-base": bert_config(
        50265,
        architectures=["RobertaModel"],
        model_type="roberta",
        type_vocab_size=1,
        max_position_embeddings=514,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    ),
}
"""Tokenizers of well-known models, and for each a configuration that leads to a class for such vocabularies."""

TOKENIZED = [
    "words",
    "words-cased",
    "bytes-roberta-model",
    "bytes-files",
    "unigram",
    "unigram-padded",
    "unigram-fairseq",
    "unigram-json",
    "ranks",
    "tekken",
    "tekken-special",
]
"""The cases that the reference can tokenize with."""
