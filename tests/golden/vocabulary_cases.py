"""Checkpoints without tensors whose tokenizers say things in every place and way they can be said.

A case is its files by name: an object for JSON, a text for anything else; `PIECES` stands for the tokenizer.model of
examples/storyteller, `UNIGRAM` for unigram.model beside this file. Both `make_vocabulary_goldens.py` and the test write
them to a directory.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

PIECES = "PIECES"
UNIGRAM = "UNIGRAM"
MODEL_FILES = {PIECES: Path(__file__).parents[2] / "examples" / "storyteller" / "tokenizer.model"}
MODEL_FILES[UNIGRAM] = Path(__file__).with_name("unigram.model")
PRE_TOKENIZER = "gpt-2"
"""What the byte-level cases are converted with: no hash knows so small a vocabulary."""

ALPHABET = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
MERGES = ["t h", "th e", "Ġ the", "i n", "in g", "Ġ a", "e r", "o n"]


def config(vocab_size: int, **more: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "vocab_size": vocab_size,
        **more,
    }


def bert_config(vocab_size: int, **more: Any) -> dict[str, Any]:
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "max_position_embeddings": 66,
        "layer_norm_eps": 1e-12,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "vocab_size": vocab_size,
        **more,
    }


def added(id_: int, content: str, *, special: bool, normalized: bool = False, **more: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    return {"id": id_, "content": content, **flags, "normalized": normalized, "special": special, **more}


def byte_level(tokens: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    texts = ALPHABET + [merge.replace(" ", "") for merge in MERGES]
    model = {"type": "BPE", "vocab": {text: id_ for id_, text in enumerate(texts)}, "merges": MERGES}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": tokens,
        "normalizer": None,
        "pre_tokenizer": bytes_,
        "post_processor": bytes_,
        "decoder": bytes_,
        **more,
        "model": model | more.get("model", {}),
    }


BYTE_LEVEL_SIZE = len(ALPHABET) + len(MERGES)


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


def template(single: str, pair: str) -> dict[str, Any]:
    """A TemplateProcessing from words: A and B are the texts, everything else a special token."""

    def item(word: str) -> dict[str, Any]:
        kind = "Sequence" if word in ("A", "B") else "SpecialToken"
        return {kind: {"id": word, "type_id": 0}}

    words = sorted({*single.split(), *pair.split()} - {"A", "B"})
    return {
        "type": "TemplateProcessing",
        "single": [item(word) for word in single.split()],
        "pair": [item(word) for word in pair.split()],
        "special_tokens": {word: {"id": word, "ids": [1], "tokens": [word]} for word in words},
    }


IDS = {"bos_token_id": 1, "eos_token_id": 2}
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
OBJECTS = {role: {"__type": "AddedToken", "content": text, "normalized": True} for role, text in NAMES.items()}
SP_ADDED = [added(0, "<unk>", special=True), added(1, "<s>", special=True), added(2, "</s>", special=True)]
SP_CLASS = {"tokenizer_class": "LlamaTokenizer"}
ENDS = [added(BYTE_LEVEL_SIZE, "<|begin|>", special=True), added(BYTE_LEVEL_SIZE + 1, "<|end|>", special=True)]
ENDS += [added(BYTE_LEVEL_SIZE + 2, "<|turn|>", special=True)]
FAST = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "eos_token": "<|end|>"}

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
    "bytes-qwen2": {
        "config.json": config(BYTE_LEVEL_SIZE + 8, architectures=["Qwen2ForCausalLM"], model_type="qwen2"),
        "tokenizer.json": byte_level([*ENDS, added(BYTE_LEVEL_SIZE + 3, "<|endoftext|>", special=True)]),
        "tokenizer_config.json": {**FAST, "add_prefix_space": False, "add_bos_token": False},
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
    "bytes": {
        "config.json": config(BYTE_LEVEL_SIZE + 8),
        "tokenizer.json": byte_level(ENDS),
        "tokenizer_config.json": {**FAST, "add_prefix_space": False},
    },
    "bytes-turn": {
        "config.json": config(BYTE_LEVEL_SIZE + 3),
        "tokenizer.json": byte_level(
            ENDS, post_processor=template("<|begin|> A <|turn|>", "<|begin|> A <|end|> <|turn|> B <|turn|>")
        ),
        "tokenizer_config.json": FAST,
    },
    "bytes-added": {
        "config.json": config(BYTE_LEVEL_SIZE + 12),
        "tokenizer.json": byte_level(
            [
                *ENDS,
                added(BYTE_LEVEL_SIZE + 3, "<tool_call>", special=False),
                added(BYTE_LEVEL_SIZE + 4, "<|looks|>", special=False),
                added(BYTE_LEVEL_SIZE + 5, "    ", special=False, normalized=True),
                added(BYTE_LEVEL_SIZE + 6, "é", special=False),
                added(BYTE_LEVEL_SIZE + 7, "▁under", special=False, normalized=True, lstrip=True),
            ]
        ),
        "tokenizer_config.json": {
            **FAST,
            "pad_token": "<pad>",
            "unk_token": "the",
            "added_tokens_decoder": {
                str(BYTE_LEVEL_SIZE + 3): added(0, "<tool_call>", special=True),
                str(BYTE_LEVEL_SIZE + 8): added(0, "<new>", special=False),
            },
        },
    },
    "bytes-roberta": {
        "config.json": config(BYTE_LEVEL_SIZE + 3),
        "tokenizer.json": byte_level(
            ENDS,
            post_processor={
                "type": "RobertaProcessing",
                "sep": ["<|end|>", BYTE_LEVEL_SIZE + 1],
                "cls": ["<|begin|>", BYTE_LEVEL_SIZE],
                "trim_offsets": True,
                "add_prefix_space": False,
            },
        ),
        "tokenizer_config.json": FAST,
    },
    "bytes-merges": {
        "config.json": config(BYTE_LEVEL_SIZE + 3, pad_token_id=BYTE_LEVEL_SIZE),
        "tokenizer.json": byte_level(ENDS, model={"merges": [merge.split() for merge in MERGES], "ignore_merges": True}),
        "tokenizer_config.json": FAST,
    },
    "bytes-merges-file": {
        "config.json": config(BYTE_LEVEL_SIZE + 3),
        "tokenizer.json": byte_level(ENDS, model={"merges": []}),
        "tokenizer_config.json": FAST,
        "merges.txt": "#version: 0.2\n" + "\n".join(MERGES) + "\n\n",
    },
    "bytes-hunyuan": {
        "config.json": config(
            BYTE_LEVEL_SIZE + 3, architectures=["HunYuanDenseV1ForCausalLM"], model_type="hunyuan_v1_dense", head_dim=16,
            eos_token_id=BYTE_LEVEL_SIZE + 1, eod_token_id=BYTE_LEVEL_SIZE,
        ),
        "tokenizer.json": byte_level(ENDS),
        "tokenizer_config.json": FAST,
        "generation_config.json": {"eos_token_id": [BYTE_LEVEL_SIZE + 2, BYTE_LEVEL_SIZE + 1]},
    },
    "bytes-hunyuan-silent": {
        "config.json": config(
            BYTE_LEVEL_SIZE + 3, architectures=["HunYuanDenseV1ForCausalLM"], model_type="hunyuan_v1_dense", head_dim=16
        ),
        "tokenizer.json": byte_level(ENDS),
        "tokenizer_config.json": FAST,
        "generation_config.json": {"eos_token_id": [BYTE_LEVEL_SIZE + 1]},
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
    "fallback": {
        "config.json": config(264 + 2, **IDS),
        "tokenizer.json": byte_fallback(
            [*SP_ADDED, added(264, "<tool>", special=True), added(265, "plain", special=False)]
        ),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **NAMES, "pad_token": "<tool>"},
    },
}


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


def write_case(directory: Path, case: dict[str, Any]) -> Path:
    """Write the files of a case."""
    for name, contents in case.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(contents, str) and contents in MODEL_FILES:
            shutil.copy(MODEL_FILES[contents], path)
        else:
            text = contents if isinstance(contents, str) else json.dumps(contents, ensure_ascii=False)
            path.write_text(text, encoding="utf-8")
    return directory
