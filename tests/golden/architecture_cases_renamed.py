"""Cases of decoders whose checkpoints hold a llama's tensors under other names or fused: EXAONE, GLM, Phi 3 ..."""

from __future__ import annotations

from architecture_cases_llama_shaped import ernie_case
from architecture_shapes import (
    ATTENTION,
    LINEAR,
    LLAMA3,
    LONGROPE,
    MLP,
    Case,
    family,
    joined,
    llama_case,
    reconfigured,
    renamed,
    with_layers,
    without,
)


def exaone_case(directory: str, changes: Case) -> Case:
    """An EXAONE 3: names like GPT's."""
    changes = {"activation_function": "silu", **changes}
    case = reconfigured(
        family("ExaoneForCausalLM", "exaone", directory, changes),
        {"rms_norm_eps": "layer_norm_epsilon", "num_hidden_layers": "num_layers"},
    )
    return renamed(
        case,
        {
            "model.embed_tokens": "transformer.wte", "model.norm": "transformer.ln_f", "model.layers": "transformer.h",
            "self_attn.o_proj": "attn.attention.out_proj", "self_attn": "attn.attention", "input_layernorm": "ln_1",
            "post_attention_layernorm": "ln_2", "gate_proj": "c_fc_0", "up_proj": "c_fc_1", "down_proj": "c_proj",
        },
    )  # fmt: skip


def as_saved_by_transformers_5(directory: str, changes: Case) -> Case:
    """An EXAONE 3 as transformers 5.24 saves it: a llama but for the names of its tensors."""
    case = exaone_case(directory, {"head_dim": 16, **changes})
    config = llama_case(directory, {"model_type": "exaone", "head_dim": 16, **changes})["config"]
    return case | {"config": config}


def internlm2_case(directory: str, changes: Case) -> Case:
    """An InternLM 2."""
    case = joined(family("InternLM2ForCausalLM", "internlm2", directory, changes), ATTENTION, "attention.wqkv")
    return renamed(
        case,
        {
            "model.embed_tokens": "model.tok_embeddings", "lm_head": "output", "self_attn.o_proj": "attention.wo",
            "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "feed_forward.w1",
            "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2",
        },
    )  # fmt: skip


def baichuan_case(directory: str, changes: Case) -> Case:
    """A Baichuan: every head has its own key."""
    case = family("BaichuanForCausalLM", "baichuan", directory, {"num_key_value_heads": None, **changes})
    return joined(case, ATTENTION, "self_attn.W_pack")


def glm_case(directory: str, changes: Case, version: str = "") -> Case:
    """A GLM 4; the one of April 2025 has a norm after each half as well."""
    changes = {"head_dim": 16, "attention_bias": True, **changes}
    case = joined(family(f"Glm{version}ForCausalLM", f"glm{version}", directory, changes), MLP, "mlp.gate_up_proj")
    norms = {"post_self_attn_layernorm.weight": [64], "post_mlp_layernorm.weight": [64]}
    return with_layers(without(case, "o_proj.bias"), norms if version else {})


def chatglm_case(directory: str, changes: Case, architecture: str = "ChatGLMModel") -> Case:
    """A ChatGLM in its own library's form."""
    changes = {"attention_bias": True, "num_key_value_heads": 2, **changes}
    case = family(architecture, "chatglm", directory, changes)
    case = joined(
        joined(without(case, "o_proj.bias"), ATTENTION, "self_attention.query_key_value"), MLP, "mlp.dense_h_to_4h"
    )
    names = {
        "num_hidden_layers": "num_layers", "intermediate_size": "ffn_hidden_size", "vocab_size": "padded_vocab_size",
        "num_key_value_heads": "multi_query_group_num", "rms_norm_eps": "layernorm_epsilon",
        "max_position_embeddings": "seq_length", "attention_bias": "add_qkv_bias",
    }  # fmt: skip
    case = renamed(
        reconfigured(case, names),
        {
            "model.embed_tokens": "transformer.embedding.word_embeddings", "lm_head": "transformer.output_layer",
            "model.norm": "transformer.encoder.final_layernorm", "model.layers": "transformer.encoder.layers",
            "self_attn.o_proj": "self_attention.dense", "mlp.down_proj": "mlp.dense_4h_to_h",
        },
    )  # fmt: skip
    return case | {"tensors": {**case["tensors"], "transformer.rotary_pos_emb.inv_freq": ["BF16", [4]]}}


def phi3_case(directory: str, changes: Case, extra: Case | None = None) -> Case:
    """A Phi 3: queries, keys and values in one projection, gate and up in another."""
    changes = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", **changes}
    case = llama_case(directory, changes, extra=extra or {})
    tensors = case["tensors"]
    for layer in range(case["config"]["num_hidden_layers"]):
        place = f"model.layers.{layer}."
        rows = [tensors.pop(f"{place}self_attn.{part}_proj.weight")[1][0] for part in "qkv"]
        tensors[f"{place}self_attn.qkv_proj.weight"] = ["BF16", [sum(rows), 64]]
        rows = [tensors.pop(f"{place}mlp.{part}_proj.weight")[1][0] for part in ("gate", "up")]
        tensors[f"{place}mlp.gate_up_proj.weight"] = ["BF16", [sum(rows), 64]]
    return case | {"tensors": dict(sorted(tensors.items()))}


CASES: dict[str, Case] = {
    "ernie4_5-fused": joined(
        joined(ernie_case("ERNIE-4.5-fused", {"num_key_value_heads": 1}), ATTENTION, "self_attn.qkv_proj"),
        MLP, "mlp.up_gate_proj",
    ),
    "ernie4_5-own-names": renamed(ernie_case("ERNIE-own", {}), {"model.": "ernie."}),
    "exaone": exaone_case("EXAONE-3.5-2.4B-Instruct", {"rope_scaling": LLAMA3, "rope_theta": 1000000.0, "head_dim": 16}),
    "exaone-tied": exaone_case("EXAONE-3.0-7.8B", {"tie_word_embeddings": True, "num_attention_heads": 8}),
    "llama-of-exaone": as_saved_by_transformers_5("EXAONE-3.5", {"rope_scaling": LLAMA3, "tie_word_embeddings": True}),
    "llama-of-exaone-sparse-config": as_saved_by_transformers_5("exaone", {"max_position_embeddings": None}),
    "internlm2": internlm2_case("internlm2-chat-7b", {"bias": False, "rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "internlm2-multi-head": internlm2_case(
        "internlm2", {"num_key_value_heads": 4, "rope_theta": 1000000, "max_position_embeddings": 32768}
    ),
    "internlm2-groups": internlm2_case("internlm2-20b", {"num_attention_heads": 8, "num_key_value_heads": 2}),
    "baichuan": baichuan_case("Baichuan2-7B-Chat", {}),
    "baichuan-13b": baichuan_case(
        "Baichuan2-13B-Chat", {"max_position_embeddings": None, "model_max_length": 4096, "rope_theta": None}
    ),
    "baichuan-linear": baichuan_case("baichuan-linear", {"rope_scaling": LINEAR}),
    "glm4": glm_case("GLM-4-9B-0414", {"partial_rotary_factor": 0.5}, version="4"),
    "glm4-sparse-config": glm_case(
        "glm4", {"rms_norm_eps": None, "rope_theta": None, "max_position_embeddings": None, "head_dim": 32,
                 "tie_word_embeddings": True}, version="4",
    ),
    "glm4-plain": glm_case("glm4-plain", {"attention_bias": False, "partial_rotary_factor": 0.25}, version="4"),
    "glm": glm_case("glm-4-9b-chat-hf", {"rope_theta": 10000.0}),
    "glm-partial": glm_case("glm-edge", {"partial_rotary_factor": 1.0, "attention_bias": False, "head_dim": 32}),
    "chatglm": chatglm_case("chatglm3-6b", {"kv_channels": 16}),
    "chatglm-long": chatglm_case(
        "glm-4-9b-chat-1m", {"rope_ratio": 500, "attention_bias": None}, architecture="ChatGLMForConditionalGeneration"
    ),
    "phi3": phi3_case("Phi-3-mini-4k-instruct", {"sliding_window": 2047, "original_max_position_embeddings": 2048}),
    "phi3-long": phi3_case(
        "Phi-3-mini-128k-instruct",
        {"rope_scaling": LONGROPE, "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
         "sliding_window": 262144, "num_key_value_heads": 4},
    ),
    "phi3-partial": phi3_case(
        "Phi-4-mini-instruct",
        {"rope_scaling": {**LONGROPE, "short_factor": [1.0] * 6, "long_factor": [1.0, 1.2, 1.4, 2.0, 3.0, 4.0]},
         "partial_rotary_factor": 0.75, "tie_word_embeddings": True, "original_max_position_embeddings": 2048},
    ),
    "phi3-sparse-config": phi3_case("phi3", {"num_key_value_heads": None, "rope_theta": None, "rms_norm_eps": None}),
    "phi3-raw-config": phi3_case(
        "phi3-raw",
        {"model_type": "phi3_mine", "rope_scaling": {**LONGROPE, "type": "su"}, "original_max_position_embeddings": 1024},
    ),
}  # fmt: skip
