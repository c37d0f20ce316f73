"""More families for `fuzz_architectures.py`: encoders, with and without decoders, recurrent models, later decoders."""

from __future__ import annotations

from random import Random
from typing import Any

from architecture_cases_encoders import CLS, LAST, MEAN, NEW_MEAN, Case
from fuzz_families import BIASES, HEAD, LLAMA, OMIT, YES_NO, Family, layers_of, rope, times, without

TITLES = [OMIT, {0: "LABEL_0"}, {0: "LABEL_0", 1: "LABEL_1"}, {0: "no", 1: "perhaps", 2: "yes"}]

BERT: Case = {
    "num_hidden_layers": [1, 2, 3], "vocab_size": [64, 100, 257], "num_attention_heads": [1, 2, 3, 4],
    "hidden_size": times("num_attention_heads", [8, 16, 24]), "intermediate_size": [32, 100],
    "max_position_embeddings": [40, 64], "type_vocab_size": [OMIT, 1, 2, 3], "layer_norm_eps": [OMIT, 1e-6],
    "pad_token_id": [0, 1, OMIT], "id2label": TITLES, "is_decoder": [OMIT], "tie_word_embeddings": [OMIT, OMIT, False],
}  # fmt: skip


def encoders(name: str) -> tuple[str, ...]:
    """The classes that the reference knows of an encoder."""
    return (f"{name}Model", f"{name}ForMaskedLM", f"{name}ForSequenceClassification")


def _pooled(choices: Case, kind: str, **more: Any) -> dict[str, Family]:
    """The family without sentence-transformers' files, and with each of these."""
    found = {}
    for name, files in {"": {}, "-cls": CLS, "-mean": MEAN, "-last": LAST, "-new": NEW_MEAN}.items():
        found[f"{kind}{name}"] = Family(choices, kind, files=files, **more)
    return found


def _t5(model: str, *, gated: bool) -> Family:
    kinds = ["gated-gelu"] if gated else [OMIT, "relu", "gated-gelu"]
    return Family(
        {"d_model": [32, 64], "d_kv": [8, 16], "d_ff": [48, 100], "num_layers": [1, 2, 3],
         "num_decoder_layers": [OMIT, 1, 2], "num_heads": [1, 2, 3, 6], "vocab_size": [64, 100],
         "relative_attention_num_buckets": [OMIT, 8],
         "relative_attention_max_distance": [OMIT, 64], "layer_norm_epsilon": [OMIT, 1e-5], "feed_forward_proj": kinds,
         "decoder_start_token_id": [0, 0, 3], "pad_token_id": [0], "tie_word_embeddings": [OMIT, True, False],
         "eos_token_id": [1]}, model, models=("AutoModelForSeq2SeqLM", *(["T5EncoderModel"] if model == "t5" else [])),
    )  # fmt: skip


MAMBA: Case = {
    "vocab_size": [64, 100, 257], "hidden_size": [32, 48], "state_size": [4, 8, 16], "num_hidden_layers": [1, 2],
    "conv_kernel": [OMIT, 2, 3], "expand": [OMIT, 2, 1], "use_bias": [OMIT, True, False], "use_conv_bias": [OMIT, True],
    "time_step_rank": [OMIT, 3, "auto"], "layer_norm_epsilon": [OMIT, 1e-6], "tie_word_embeddings": [OMIT, True, False],
}


def _heads_of_mamba2(random: Random, made: Case) -> int:
    return made["hidden_size"] * made.get("expand", 2) // made["head_dim"]


def _hybrid_layers(random: Random, made: Case) -> list[str]:
    kinds = random.choice([["mamba", "attention"], ["mamba", "attention"], ["mamba"], ["attention"]])
    return [random.choice(kinds) for _ in range(made["num_hidden_layers"])]


SCALES: Case = {
    name: [OMIT, 0.25, 12]
    for name in ("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier")
}

VISION = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 16}

LATER: dict[str, Family] = {
    **_pooled(BERT, "bert", models=encoders("Bert")),
    **_pooled(BERT, "roberta", models=("RobertaModel", "RobertaForSequenceClassification")),
    **_pooled(BERT, "xlm-roberta", models=("XLMRobertaModel", "XLMRobertaForSequenceClassification")),
    "camembert": Family(BERT, "camembert", models=("CamembertModel",)),
    "distilbert": Family(
        {"n_layers": [1, 2], "n_heads": [1, 2, 4], "dim": times("n_heads", [8, 16]), "hidden_dim": [32, 100],
         "vocab_size": [64, 100], "max_position_embeddings": [40, 64], "pad_token_id": [0, 1, OMIT], "id2label": TITLES,
         "tie_word_embeddings": [OMIT, OMIT, False]}, "distilbert", models=encoders("DistilBert"),
    ),
    **_pooled(
        {**without(BERT, "type_vocab_size", "layer_norm_eps", "is_decoder"), "norm_eps": [OMIT, 1e-6],
         "norm_bias": [OMIT, True, False], "attention_bias": [OMIT, True], "mlp_bias": [OMIT, True],
         "local_attention": [OMIT, 32], "classifier_pooling": [OMIT, "mean", "cls"], "pad_token_id": [0, 3],
         "bos_token_id": [1], "eos_token_id": [2], "cls_token_id": [1], "sep_token_id": [2],
         "hidden_activation": [OMIT, "gelu", "silu"], "layer_types": layers_of("full_attention", "sliding_attention")},
        "modernbert", models=encoders("ModernBert"),
    ),
    "t5": _t5("t5", gated=False),
    "mt5": _t5("mt5", gated=True),
    "umt5": _t5("umt5", gated=True),
    "mamba": Family(MAMBA, "mamba"),
    "falcon_mamba": Family(MAMBA, "falcon_mamba"),
    "mamba2": Family(
        {**without(MAMBA, "time_step_rank"), "n_groups": [1, 2], "head_dim": [8, 16], "num_heads": _heads_of_mamba2,
         "rms_norm": [OMIT, True]}, "mamba2",
    ),
    "granitehybrid": Family(
        {**LLAMA, **SCALES, "hidden_size": times("num_attention_heads", [16, 32]), "num_local_experts": [0, 0, 2, 5],
         "num_experts_per_tok": [1, 2], "shared_intermediate_size": [40, 24], "attention_bias": [OMIT, True],
         "layer_types": _hybrid_layers, "mamba_n_heads": [2, 4], "mamba_n_groups": [1, 2], "mamba_d_state": [4, 16],
         "mamba_d_conv": [OMIT, 3], "mamba_expand": [OMIT, 2, 1], "mamba_conv_bias": [OMIT, True],
         "mamba_proj_bias": [OMIT, True, False], "position_embedding_type": [OMIT, "rope", "nope"]}, "granitemoehybrid",
    ),
    "exaone4": Family(
        {**LLAMA, **HEAD, "sliding_window": [OMIT, None, 64], "sliding_window_pattern": [OMIT, 4, "LLLG", None],
         "layer_types": layers_of("sliding_attention", "full_attention")}, "exaone4",
    ),
    "lfm2moe": Family(
        {**without(LLAMA, "rms_norm_eps"), "norm_eps": [OMIT, 1e-6], "conv_bias": [OMIT, OMIT, True],
         "conv_L_cache": [OMIT, 4], "num_experts": [1, 2, 5], "num_experts_per_tok": [1, 2], "num_dense_layers": [0, 1, 2],
         "moe_intermediate_size": [16, 40], "use_expert_bias": [OMIT, True, False], "norm_topk_prob": [OMIT, False],
         "routed_scaling_factor": [OMIT, 2.0], "layer_types": lambda random, made: [
             random.choice(["conv", "full_attention"]) for _ in range(made["num_hidden_layers"])]}, "lfm2_moe",
    ),
    "glm4moe": Family(
        {**LLAMA, "head_dim": [OMIT, 16, 32], "attention_bias": [OMIT, True, False], "use_qk_norm": [OMIT, True, False],
         "n_routed_experts": [1, 2, 5], "num_experts_per_tok": [1, 2], "moe_intermediate_size": [16, 40],
         "n_shared_experts": [OMIT, 1, 2], "first_k_dense_replace": [OMIT, 0, 1], "norm_topk_prob": [OMIT, True, False],
         "routed_scaling_factor": [OMIT, 2.5], "n_group": [OMIT, 1], "topk_group": [OMIT, 1],
         "rope_parameters": rope(partial=(OMIT, 0.5))}, "glm4_moe",
    ),
    "dots1": Family(
        {**LLAMA, "head_dim": [OMIT, OMIT, 16], "attention_bias": [OMIT, OMIT, True], "n_routed_experts": [1, 2, 5],
         "num_experts_per_tok": [1, 2], "moe_intermediate_size": [16, 40], "n_shared_experts": [1, 2],
         "first_k_dense_replace": [OMIT, 0, 1], "norm_topk_prob": [OMIT, True, False], "n_group": [OMIT, 1],
         "routed_scaling_factor": [OMIT, 2.5]}, "dots1",
    ),
    "ernie4_5_moe": Family(
        {**LLAMA, "head_dim": [OMIT, OMIT, 16], "use_bias": [OMIT, True], "moe_num_experts": [2, 5], "moe_k": [1, 2],
         "moe_intermediate_size": [16, 40], "moe_num_shared_experts": [OMIT, 0, 1, 2],
         "moe_layer_start_index": [OMIT, 0, 1], "moe_layer_interval": [OMIT, 1, 2]}, "ernie4_5_moe",
    ),
    "arcee": Family({**LLAMA, **HEAD, **BIASES}, "arcee"),
    "ministral3": Family({**LLAMA, **HEAD, "sliding_window": [OMIT, None, 64]}, "ministral3"),
    "gemma-embedding": Family(
        {**LLAMA, "head_dim": [16, 24], "sliding_window": [OMIT, 33], "rope_parameters": [OMIT],
         "layer_types": layers_of("sliding_attention", "full_attention"), "use_bidirectional_attention": [True, OMIT]},
        "gemma3_text", models=("Gemma3TextModel",), files=MEAN,
    ),
    "qwen3-embedding": Family({**LLAMA, **HEAD}, "qwen3", models=("Qwen3Model",), files=LAST),
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
