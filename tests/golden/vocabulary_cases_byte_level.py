"""Vocabularies of byte-level BPE (`GPT2Tokenizer`, `PreTrainedTokenizerFast`)."""

from __future__ import annotations

from typing import Any

from vocabulary_files import added, bert_config, config, template

ALPHABET = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]

MERGES = ["t h", "th e", "Ġ the", "i n", "in g", "Ġ a", "e r", "o n"]


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

ENDS = [added(BYTE_LEVEL_SIZE, "<|begin|>", special=True), added(BYTE_LEVEL_SIZE + 1, "<|end|>", special=True)]
ENDS += [added(BYTE_LEVEL_SIZE + 2, "<|turn|>", special=True)]

FAST = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "eos_token": "<|end|>"}

BEGIN_END = ("bos_token", "eos_token", "unk_token")

CASES: dict[str, dict[str, Any]] = {
    "bytes-qwen2": {
        "config.json": config(BYTE_LEVEL_SIZE + 8, architectures=["Qwen2ForCausalLM"], model_type="qwen2"),
        "tokenizer.json": byte_level([*ENDS, added(BYTE_LEVEL_SIZE + 3, "<|endoftext|>", special=True)]),
        "tokenizer_config.json": {**FAST, "add_prefix_space": False, "add_bos_token": False},
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
    "bytes-qwen3-asr": {
        "config.json": config(
            BYTE_LEVEL_SIZE + 4, architectures=["Qwen3ASRForConditionalGeneration"], model_type="mine", head_dim=16
        ),
        "tokenizer.json": byte_level([*ENDS, added(BYTE_LEVEL_SIZE + 3, "<|im_end|>", special=True)]),
        "tokenizer_config.json": {
            **FAST, "chat_template": "for audio",
            "added_tokens_decoder": {str(BYTE_LEVEL_SIZE + 3): added(0, "<|im_end|>", special=True)},
        },
    },
    "bytes-glm4-flash": {
        "config.json": config(
            BYTE_LEVEL_SIZE + 7, architectures=["Glm4MoeLiteForCausalLM"], model_type="mine", kv_lora_rank=8,
            qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, n_routed_experts=2,
        ),
        "tokenizer.json": byte_level([*ENDS, *(
            added(BYTE_LEVEL_SIZE + 3 + number, text, special=True)
            for number, text in enumerate(("[gMASK]", "<|user|>", "<|endoftext|>", "<|observation|>"))
        )]),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"},
    },
    "bytes-solar-open": {
        "config.json": config(
            BYTE_LEVEL_SIZE + 6, architectures=["SolarOpenForCausalLM"], model_type="mine", n_routed_experts=2
        ),
        "tokenizer.json": byte_level([*ENDS, *(
            added(BYTE_LEVEL_SIZE + 3 + number, text, special=True)
            for number, text in enumerate(("<unk>", "<|startoftext|>", "<|endoftext|>"))
        )]),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
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
}  # fmt: skip

KINDS: dict[str, dict[str, Any]] = {
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
}  # fmt: skip

RULES: dict[str, dict[str, Any]] = {
    "bytes-roberta-model": {"token_type_count": True},
    "bytes-files": {},
}  # fmt: skip
