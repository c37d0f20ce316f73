"""More checkpoints without tensors, for the kinds of vocabulary that few architectures have, as in `vocabulary_cases`.

`RULES` are what the architecture files say of these vocabularies.
"""

from __future__ import annotations

import base64
from typing import Any

from vocabulary_cases import (
    ALPHABET,
    BYTE_LEVEL_SIZE,
    ENDS,
    FAST,
    IDS,
    MERGES,
    PIECES,
    UNIGRAM,
    added,
    bert_config,
    byte_level,
    config,
    template,
)

UNIGRAM_SIZE = 300

# --- WordPiece ------------------------------------------------------------------------------------------------------------

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


# --- Unigram --------------------------------------------------------------------------------------------------------------

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


BEGIN_END = ("bos_token", "eos_token", "unk_token")

# --- Ranks ----------------------------------------------------------------------------------------------------------------

JOINED = [b"th", b"the", b" the", b"in", b"ing", b" a", b"er", b"\xc3\xa9", b"on", b"ther", b"aaaa"]
JOINED.insert(-1, b"aa")
RANKS = [bytes([byte]) for byte in range(256)] + JOINED
TIKTOKEN = "".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(RANKS))
REMOTE = '''
import base64

from transformers import PreTrainedTokenizer


class SmallTokenizer(PreTrainedTokenizer):
    vocab_files_names = {"vocab_file": "qwen.tiktoken"}

    def __init__(self, vocab_file, **more):
        lines = [line.split() for line in open(vocab_file, "rb").read().splitlines()]
        self.mergeable_ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
        texts = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205)))
        self.special_tokens = {text: len(lines) + index for index, text in enumerate(texts)}
        super().__init__(**more)

    @property
    def vocab_size(self):
        return len(self.mergeable_ranks) + len(self.special_tokens)

    def get_vocab(self):
        return {**self.mergeable_ranks, **self.special_tokens}

    def _tokenize(self, text, **more):
        return []

    def _convert_token_to_id(self, token):
        return self.special_tokens.get(token)

    def _convert_id_to_token(self, index):
        return next((text for text, id_ in self.special_tokens.items() if id_ == index), None)
'''
STABLELM = config(
    len(RANKS) + 210,
    architectures=["StableLmForCausalLM"],
    model_type="stablelm",
    partial_rotary_factor=0.25,
    layer_norm_eps=1e-5,
    use_qkv_bias=False,
)
TEKKEN = {
    "config": {
        "pattern": r"\s+|\S+",
        "num_vocab_tokens": len(RANKS),
        "default_vocab_size": len(RANKS) + 20,
        "default_num_special_tokens": 24,
        "version": "v3",
    },
    "vocab": [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for rank, token in enumerate(RANKS)
    ],
}

TEKKEN_TEXTS = ["<s>", "</s>", "<unk>", "<pad>", "[SUFFIX]", "[PREFIX]", "[MIDDLE]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]
for text in ("INST", "AVAILABLE_TOOLS", "TOOL_RESULTS", "SYSTEM_PROMPT"):
    TEKKEN_TEXTS += [f"[{text}]", f"[/{text}]"]
TEKKEN_TEXTS += ["[TOOL_CALLS]", "[TOOL_CONTENT]"]

# --- The cases ------------------------------------------------------------------------------------------------------------

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
    "bytes-roberta-model": {
        "config.json": bert_config(
            BYTE_LEVEL_SIZE + 3, architectures=["RobertaModel"], model_type="roberta", type_vocab_size=1, pad_token_id=1
        ),
        "tokenizer.json": byte_level(ENDS),
        "tokenizer_config.json": FAST,
    },
    "bytes-files": {
        "config.json": {
            **config(BYTE_LEVEL_SIZE, architectures=["GPT2LMHeadModel"], model_type="gpt2", eos_token_id=5, bos_token_id=6),
            **{"n_embd": 64, "n_head": 4, "n_layer": 1, "n_ctx": 64, "n_positions": 64, "layer_norm_epsilon": 1e-5},
        },
        "vocab.json": {text: id_ for id_, text in enumerate(ALPHABET + [merge.replace(" ", "") for merge in MERGES])},
        "merges.txt": "#version: 0.2\n" + "\n".join(MERGES) + "\n",
        "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", **dict.fromkeys(BEGIN_END, "the")},
    },
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
    "pieces-phi3": {
        "config.json": config(
            2060,
            **IDS,
            architectures=["Phi3ForCausalLM"],
            model_type="phi3",
            original_max_position_embeddings=128,
            sliding_window=64,
            pad_token_id=2,
        ),
        "tokenizer.model": PIECES,
        "tokenizer_config.json": {
            "tokenizer_class": "LlamaTokenizer",
            "added_tokens_decoder": {
                "2048": {"content": "<|looks|>", "special": False, "rstrip": True},
                "2049": {"content": "▁under", "special": False},
                "2050": {"content": "<|end|>", "special": True},
            },
        },
        "tokenizer.json": {"added_tokens": [added(2051, "<|user|>", special=True), added(2049, "over", special=False)]},
    },
    "ranks": {
        "config.json": STABLELM,
        "qwen.tiktoken": TIKTOKEN,
        "tokenization_small.py": REMOTE,
        "tokenizer_config.json": {
            "tokenizer_class": "SmallTokenizer",
            "auto_map": {"AutoTokenizer": ["tokenization_small.SmallTokenizer", None]},
        },
    },
    "ranks-named": {
        "config.json": {**STABLELM, "bos_token_id": len(RANKS) + 1},
        "qwen.tiktoken": TIKTOKEN,
        "tokenization_small.py": REMOTE,
        "tokenizer_config.json": {
            "tokenizer_class": "SmallTokenizer",
            "auto_map": {"AutoTokenizer": ["tokenization_small.SmallTokenizer", None]},
            "chat_template": "c",
        },
    },
    "tekken": {"config.json": config(len(RANKS) + 20), "tekken.json": TEKKEN},
    "tekken-special": {
        "config.json": config(len(RANKS) + 22),
        "tekken.json": TEKKEN
        | {
            "config": {
                **TEKKEN["config"],
                "version": "v7",
                "default_vocab_size": len(RANKS) + len(TEKKEN_TEXTS) + 2,
                "default_num_special_tokens": len(TEKKEN_TEXTS) + 2,
            },
            "special_tokens": [
                {"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(TEKKEN_TEXTS)
            ],
        },
    },
}

RULES: dict[str, dict[str, Any]] = {
    "words": {"token_type_count": True},
    "words-cased": {"token_type_count": True},
    "words-file": {"token_type_count": True},
    "bytes-roberta-model": {"token_type_count": True},
    "bytes-files": {},
    "unigram": {"unigram": True},
    "unigram-padded": {"unigram": True},
    "unigram-as-pieces": {},
    "unigram-fairseq": {"unigram": True, "fairseq_ids": True, "token_type_count": True},
    "unigram-json": {"unigram": True, "fairseq_ids": True, "token_type_count": True},
    "pieces-t5": {"unigram": True},
    "pieces-phi3": {"literal_added": True},
    "ranks": {},
    "ranks-named": {},
    "tekken": {"copy_space_prefix": True, "flat_scores": True},
    "tekken-special": {"copy_space_prefix": True, "flat_scores": True},
}

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
