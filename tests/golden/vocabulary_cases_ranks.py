"""Vocabularies of ranked bytes: tiktoken files with a tokenizer class of their own, and Tekken."""

from __future__ import annotations

import base64
from typing import Any

from vocabulary_files import config

JOINED = [b"th", b"the", b" the", b"in", b"ing", b" a", b"er", b"\xc3\xa9", b"on", b"ther", b"aa", b"aaaa"]

RANKS = [bytes([byte]) for byte in range(256)] + JOINED

TIKTOKEN = "".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(RANKS))

REMOTE = """
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
"""

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

KINDS: dict[str, dict[str, Any]] = {
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
}  # fmt: skip

RULES: dict[str, dict[str, Any]] = {
    "ranks": {},
    "ranks-named": {},
    "tekken": {"copy_space_prefix": True, "flat_scores": True},
    "tekken-special": {"copy_space_prefix": True, "flat_scores": True},
}  # fmt: skip
