"""Vocabularies of unigram models (`T5Tokenizer`, `XLMRobertaTokenizer`)."""

from __future__ import annotations

import base64
from typing import Any

from vocabulary_files import IDS, PIECES, UNIGRAM, UNIGRAM_SIZE, added, bert_config, config, template

T5 = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 1,
    "num_heads": 4,
    "layer_norm_epsilon": 1e-6,
    "relative_attention_num_buckets": 32,
    "n_positions": 512,
    "decoder_start_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "feed_forward_proj": "relu",
}

XLM = bert_config(
    UNIGRAM_SIZE + 2,
    architectures=["XLMRobertaModel"],
    model_type="xlm-roberta",
    type_vocab_size=1,
    bos_token_id=0,
    pad_token_id=1,
    eos_token_id=2,
)

XLM_PIECES: list[list[Any]] = [["<s>", 0.0], ["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["▁the", -3.5], ["a", -4.25]]
XLM_PIECES += [["<x>", 0.0], ["<mask>", 0.0]]

XLM_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>", "unk_token": "<unk>"}
XLM_NAMES |= {"pad_token": "<pad>", "mask_token": "<mask>", "tokenizer_class": "XLMRobertaTokenizer"}

CHARACTER_MAP = base64.b64encode(b"\0\x04\0\0" + bytes(1024) + b"x\0").decode()
"""A precompiled map of nothing: a trie of 256 nodes without a key, and a replacement that none leads to."""


def unigram() -> dict[str, Any]:
    specials = [0, 1, 2, 3, 7]
    return {
        "version": "1.0",
        "added_tokens": [added(id_, XLM_PIECES[id_][0], special=True, lstrip=id_ == 7) for id_ in specials],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": CHARACTER_MAP},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "WhitespaceSplit"},
                {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
            ],
        },
        "post_processor": template("<s> A </s>", "<s> A </s> </s> B </s>"),
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 3, "vocab": XLM_PIECES, "byte_fallback": False},
    }


KINDS: dict[str, dict[str, Any]] = {
    "unigram": {"config.json": {**T5, "vocab_size": UNIGRAM_SIZE}, "tokenizer.model": UNIGRAM},
    "unigram-padded": {
        "config.json": {**T5, "vocab_size": UNIGRAM_SIZE + 20},
        "spiece.model": UNIGRAM,
        "added_tokens.json": {"<new>": UNIGRAM_SIZE + 1, "<beyond>": 5000},
        "tokenizer_config.json": {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "unk_token": "<unk>"},
    },
    "unigram-as-pieces": {"config.json": config(UNIGRAM_SIZE, **IDS), "tokenizer.model": UNIGRAM},
    "unigram-fairseq": {"config.json": XLM, "sentencepiece.bpe.model": UNIGRAM},
    "unigram-json": {
        "config.json": {**XLM, "vocab_size": len(XLM_PIECES) + 2},
        "tokenizer.json": unigram(),
        "tokenizer_config.json": XLM_NAMES,
    },
    "pieces-t5": {"config.json": {**T5, "vocab_size": 2048}, "tokenizer.model": PIECES},
}  # fmt: skip

RULES: dict[str, dict[str, Any]] = {
    "unigram": {"unigram": True},
    "unigram-padded": {"unigram": True},
    "unigram-as-pieces": {},
    "unigram-fairseq": {"unigram": True, "fairseq_ids": True, "token_type_count": True},
    "unigram-json": {"unigram": True, "fairseq_ids": True, "token_type_count": True},
    "pieces-t5": {"unigram": True},
}  # fmt: skip
