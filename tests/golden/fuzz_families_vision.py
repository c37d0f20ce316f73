"""Families of language models inside models that see, for `fuzz_architectures.py`."""

from __future__ import annotations

from fuzz_families import YES_NO, Family

VISION = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 16}

FAMILIES: dict[str, Family] = {
    "qwen2-vl": Family(
        {"text_config": lambda random, made: {
            "num_attention_heads": 2, "num_key_value_heads": random.choice([1, 2]), "hidden_size": 32, "vocab_size": 100,
            "intermediate_size": 48, "num_hidden_layers": random.choice([1, 2]),
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 5e5}},
         "vision_config": [VISION], "tie_word_embeddings": YES_NO}, "qwen2_vl", models=("AutoModelForImageTextToText",),
    ),
    "qwen3-vl": Family(
        {"text_config": lambda random, made: {
            "num_attention_heads": 2, "num_key_value_heads": random.choice([1, 2]), "hidden_size": 32, "head_dim": 16,
            "vocab_size": 100, "intermediate_size": 48, "num_hidden_layers": random.choice([1, 2]),
            "attention_bias": random.choice(YES_NO),
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 5e5}},
         "vision_config": [{**VISION, "deepstack_visual_indexes": [0]}], "tie_word_embeddings": YES_NO}, "qwen3_vl",
        models=("AutoModelForImageTextToText",),
    ),
}  # fmt: skip
