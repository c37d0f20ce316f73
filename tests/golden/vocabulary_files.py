"""The files of checkpoints without tensors, of which vocabulary cases are made.

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

UNIGRAM_SIZE = 300

MODEL_FILES = {PIECES: Path(__file__).parents[2] / "examples" / "storyteller" / "tokenizer.model"}
MODEL_FILES[UNIGRAM] = Path(__file__).with_name("unigram.model")

PRE_TOKENIZER = "gpt-2"
"""What the byte-level cases are converted with: no hash knows so small a vocabulary."""

IDS = {"bos_token_id": 1, "eos_token_id": 2}


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
