"""Vocabularies of SentencePiece pieces with merges (`LlamaTokenizer`), in tokenizer.model or tokenizer.json; templates."""

from __future__ import annotations

from typing import Any

from vocabulary_files import IDS, PIECES, added, config, template


def byte_fallback(tokens: list[dict[str, Any]]) -> dict[str, Any]:
    texts = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", "a", "b", "▁a", "ab"]
    return {
        "version": "1.0",
        "added_tokens": tokens,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {text: id_ for id_, text in enumerate(texts)},
            "merges": [["▁", "a"], ["a", "b"]],
        },
    }


NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

OBJECTS = {role: {"__type": "AddedToken", "content": text, "normalized": True} for role, text in NAMES.items()}

SP_ADDED = [added(0, "<unk>", special=True), added(1, "<s>", special=True), added(2, "</s>", special=True)]

SP_CLASS = {"tokenizer_class": "LlamaTokenizer"}

GEMMA = config(2048, **IDS, head_dim=16, attn_logit_softcapping=50.0, final_logit_softcapping=30.0, sliding_window=64)

CASES: dict[str, dict[str, Any]] = {
    "pieces": {"config.json": config(2048, **IDS), "tokenizer.model": PIECES},
    "pieces-padded": {
        "config.json": config(2060, **IDS),
        "tokenizer.model": PIECES,
        "added_tokens.json": {"<extra>": 2049, "<beyond>": 5000},
        "tokenizer_config.json": {
            **SP_CLASS,
            **NAMES,
            "add_bos_token": True,
            "add_eos_token": False,
            "added_tokens_decoder": {
                "0": {"content": "<unk>", "special": True},
                "2050": {"content": "<tool>", "special": True},
                "2051": {"content": "▁plain▁text", "special": False},
                "2052": {"content": "<|looks|>", "special": False},
                "2053": {"content": "<unused7>", "special": False},
                "6000": {"content": "<beyond>", "special": True},
            },
            "chat_template": "{{ messages[0]['content'] }} ä",
        },
    },
    "pieces-cut": {"config.json": config(2000, bos_token_id=1, eos_token_id=2001), "tokenizer.model": PIECES},
    "pieces-codellama": {
        "config.json": config(32016, **IDS),
        "tokenizer.model": PIECES,
        "tokenizer_config.json": {**SP_CLASS, "add_prefix_space": True, "chat_template": "x"},
    },
    "pieces-internlm3": {
        "config.json": config(2050, architectures=["InternLM3ForCausalLM"], model_type="mine", **IDS),
        "tokenizer.model": PIECES,
        "tokenizer_config.json": {
            "tokenizer_class": "LlamaTokenizer", "add_prefix_space": False,
            "added_tokens_decoder": {"2048": {"content": "<|im_end|>", "special": True}},
        },
    },
    "pieces-granite": {
        "config.json": config(49152, **IDS, pad_token_id=0),
        "tokenizer.model": PIECES,
        "tokenizer_config.json": {**SP_CLASS, "add_bos_token": True, "add_prefix_space": False},
    },
    "pieces-objects": {
        "config.json": config(2048, **IDS),
        "tokenizer.model": PIECES,
        "tokenizer_config.json": {**SP_CLASS, **OBJECTS, "add_bos_token": False, "add_eos_token": True},
        "tokenizer.json": {
            "added_tokens": SP_ADDED,
            "post_processor": template("<s> A </s>", "<s> A </s> <s> B </s>"),
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, {"type": "StripAccents"}]},
        },
    },
    "pieces-no-configuration": {
        "config.json": config(2048, text_config={"bos_token_id": 1}, eos_token_id=[2, 3], pad_token_id=2),
        "tokenizer.model": PIECES,
        "tokenizer.json": {
            "added_tokens": SP_ADDED,
            "post_processor": template("<s> A", "<s> A <s> B"),
            "normalizer": {"type": "BertNormalizer", "lowercase": True, "strip_accents": None},
        },
    },
    "pieces-separated": {
        "config.json": config(2048),
        "tokenizer.model": PIECES,
        "tokenizer_config.json": {**SP_CLASS, "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"},
        "tokenizer.json": {"added_tokens": SP_ADDED, "post_processor": template("<s> A </s>", "<s> A </s> </s> B </s>")},
    },
    "pieces-gemma": {
        "config.json": GEMMA | {"architectures": ["GemmaForCausalLM"], "model_type": "gemma"},
        "tokenizer.model": PIECES,
        "tokenizer_config.json": {**SP_CLASS, "add_bos_token": True, "add_prefix_space": True, "chat_template": "g"},
    },
    "pieces-gemma2": {
        "config.json": GEMMA | {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2"},
        "tokenizer.model": PIECES,
        "tokenizer_config.json": {**SP_CLASS, "add_bos_token": True, "chat_template": "g"},
    },
    "pieces-nemotron": {
        "config.json": config(
            2048, **IDS, architectures=["NemotronForCausalLM"], model_type="nemotron", norm_eps=1e-5,
            partial_rotary_factor=0.5, pad_token_id=3,
        ),
        "tokenizer.model": PIECES,
        "tokenizer_config.json": {**SP_CLASS, **NAMES},
        "tokenizer.json": {"added_tokens": SP_ADDED},
    },
    "templates-list": {
        "config.json": config(2048, **IDS),
        "tokenizer.model": PIECES,
        "tokenizer_config.json": {
            **SP_CLASS,
            "chat_template": [
                {"name": "default", "template": "D"},
                {"name": "tool use!", "template": "T"},
                {"name": "", "template": "nameless"},
            ],
        },
    },
    "templates-file": {
        "config.json": config(2048, **IDS),
        "tokenizer.model": PIECES,
        "tokenizer_config.json": SP_CLASS,
        "chat_template.jinja": "file {{ bos_token }}\n",
    },
    "templates-files": {
        "config.json": config(2048, **IDS),
        "tokenizer.model": PIECES,
        "tokenizer_config.json": SP_CLASS,
        "chat_template.jinja": "file",
        "additional_chat_templates/rag.jinja": "rag",
    },
    "templates-json": {
        "config.json": config(2048, **IDS),
        "tokenizer.model": PIECES,
        "tokenizer_config.json": SP_CLASS,
        "chat_template.json": {"chat_template": "json"},
    },
    "templates-null": {
        "config.json": config(2048, **IDS),
        "tokenizer.model": PIECES,
        "tokenizer_config.json": {**SP_CLASS, "chat_template": None},
        "chat_template.jinja": "unused",
    },
    "fallback": {
        "config.json": config(264 + 2, **IDS),
        "tokenizer.json": byte_fallback(
            [*SP_ADDED, added(264, "<tool>", special=True), added(265, "plain", special=False)]
        ),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **NAMES, "pad_token": "<tool>"},
    },
}  # fmt: skip

KINDS: dict[str, dict[str, Any]] = {
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
}  # fmt: skip

RULES: dict[str, dict[str, Any]] = {
    "pieces-phi3": {"literal_added": True},
}  # fmt: skip
