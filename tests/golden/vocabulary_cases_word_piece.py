"""Vocabularies of WordPiece (`BertTokenizer`)."""

from __future__ import annotations

from typing import Any

from vocabulary_files import added, bert_config, template

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh.!?é中", "##a", "##b", "##ing", "the", "###", "▁x"]

BERT_NAMES = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}


def word_piece(normalizer: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "version": "1.0",
        "added_tokens": [added(id_, WORDS[id_], special=True) for id_ in range(5)],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, **normalizer},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": template("[CLS] A [SEP]", "[CLS] A [SEP] B [SEP]"),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {text: id_ for id_, text in enumerate(WORDS)},
        },
        **more,
    }


KINDS: dict[str, dict[str, Any]] = {
    "words": {
        "config.json": bert_config(len(WORDS) + 2, pad_token_id=0),
        "tokenizer.json": word_piece({"lowercase": True, "strip_accents": None}),
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "do_lower_case": True, **BERT_NAMES},
    },
    "words-cased": {
        "config.json": bert_config(len(WORDS), type_vocab_size=1),
        "tokenizer.json": word_piece({"lowercase": False, "strip_accents": False}),
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "do_lower_case": False, **BERT_NAMES},
    },
    "words-file": {
        "config.json": bert_config(len(WORDS), pad_token_id=0),
        "vocab.txt": "\n".join(WORDS) + "\n",
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "do_lower_case": True},
    },
}  # fmt: skip

RULES: dict[str, dict[str, Any]] = {
    "words": {"token_type_count": True},
    "words-cased": {"token_type_count": True},
    "words-file": {"token_type_count": True},
}  # fmt: skip
