"""Cases of families whose checkpoints hold a llama's tensors under other names or fused: ERNIE, EXAONE, GLM ..."""

from __future__ import annotations

from functools import reduce

from architecture_cases import LLAMA3, Case
from architecture_cases_llama_like import LONGROPE
from architecture_cases_open import family, with_layers, without

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj")


def renamed(case: Case, names: dict[str, str]) -> Case:
    """The case with pieces of its names replaced."""
    tensors = {}
    for name, kind in case["tensors"].items():
        tensors[reduce(lambda text, old: text.replace(old, names[old]), names, name)] = kind
    return case | {"tensors": dict(sorted(tensors.items()))}


def joined(case: Case, parts: tuple[str, ...], whole: str) -> Case:
    """The case with projections of a layer in one, weights and biases."""
    tensors: Case = {}
    for name, (dtype, shape) in case["tensors"].items():
        part = next((part for part in parts if f".{part}." in name), None)
        if part is None:
            tensors[name] = [dtype, shape]
            continue
        before = tensors.get(name.replace(part, whole), [dtype, [0]])[1][0]
        tensors[name.replace(part, whole)] = [dtype, [before + shape[0], *shape[1:]]]
    return case | {"tensors": dict(sorted(tensors.items()))}


def reconfigured(case: Case, names: dict[str, str]) -> Case:
    """The case with keys of its configuration renamed."""
    return case | {"config": {names.get(key, key): value for key, value in case["config"].items()}}


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


def nemotron_case(directory: str, changes: Case) -> Case:
    """A Nemotron: layer norms, no gate."""
    changes = {"rms_norm_eps": None, "norm_eps": 1e-5, **changes}
    case = without(family("NemotronForCausalLM", "nemotron", directory, changes), "gate_proj.weight", "gate_proj.bias")
    biases = {
        name.replace("weight", "bias"): kind for name, kind in case["tensors"].items() if name.endswith("norm.weight")
    }
    return case | {"tensors": dict(sorted({**case["tensors"], **biases}.items()))}


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


def minicpm_case(directory: str, changes: Case) -> Case:
    """A MiniCPM."""
    return family(
        "MiniCPMForCausalLM", "minicpm", directory, {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 32, **changes}
    )


def minicpm3_case(directory: str, changes: Case) -> Case:
    """A MiniCPM 3: queries, keys and values by way of narrow projections."""
    sizes = {
        "q_lora_rank": 24, "kv_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10,
        "num_key_value_heads": 4, "tie_word_embeddings": True, **changes,
    }  # fmt: skip
    case = family("MiniCPM3ForCausalLM", "minicpm3", directory, sizes)
    case = without(case, *(f"{part}.weight" for part in ATTENTION), "o_proj.weight")
    heads, rank = case["config"]["num_attention_heads"], sizes["kv_lora_rank"]
    return with_layers(
        case,
        {
            "self_attn.q_a_proj.weight": [sizes["q_lora_rank"], 64],
            "self_attn.q_a_layernorm.weight": [sizes["q_lora_rank"]],
            "self_attn.q_b_proj.weight": [heads * (sizes["qk_nope_head_dim"] + 8), sizes["q_lora_rank"]],
            "self_attn.kv_a_proj_with_mqa.weight": [rank + 8, 64],
            "self_attn.kv_a_layernorm.weight": [rank],
            "self_attn.kv_b_proj.weight": [heads * (sizes["qk_nope_head_dim"] + sizes["v_head_dim"]), rank],
            "self_attn.o_proj.weight": [64, heads * sizes["v_head_dim"]],
        },
    )


def hunyuan_case(directory: str, changes: Case, **more: Case) -> Case:
    """A Hunyuan without experts."""
    case = family("HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense", directory, {"head_dim": 32, **changes}, **more)
    head_dim = case["config"].get("head_dim", 16)
    return with_layers(case, {f"self_attn.{name}_layernorm.weight": [head_dim] for name in ("query", "key")})


def ernie_case(directory: str, changes: Case) -> Case:
    """An ERNIE 4.5."""
    changes = {"head_dim": 16, "tie_word_embeddings": True, **changes}
    biases = {"attention_bias": changes.get("use_bias"), "mlp_bias": changes.get("use_bias")}
    return family("Ernie4_5ForCausalLM", "ernie4_5", directory, changes, shaped=biases)


FACTORS = {**LONGROPE, "rope_type": "longrope", "original_max_position_embeddings": 1024}
SHORT = {**FACTORS, "short_factor": [1.0, 1.1, 1.2, 1.5], "long_factor": [1.0, 2.5, 6.25, 15.0]}
DYNAMIC = {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0}

CASES: dict[str, Case] = {
    "ernie4_5": ernie_case("ERNIE-4.5-0.3B-PT", {"rope_theta": 500000.0}),
    "ernie4_5-biases": ernie_case("ernie", {"use_bias": True, "tie_word_embeddings": False, "head_dim": 24}),
    "ernie4_5-fused": joined(
        joined(ernie_case("ERNIE-4.5-fused", {"num_key_value_heads": 1}), ATTENTION, "self_attn.qkv_proj"),
        MLP, "mlp.up_gate_proj",
    ),
    "exaone": exaone_case("EXAONE-3.5-2.4B-Instruct", {"rope_scaling": LLAMA3, "rope_theta": 1000000.0, "head_dim": 16}),
    "exaone-tied": exaone_case("EXAONE-3.0-7.8B", {"tie_word_embeddings": True, "num_attention_heads": 8}),
    "nemotron": nemotron_case("Minitron-4B-Base", {"partial_rotary_factor": 0.5, "head_dim": 16}),
    "nemotron-tied": nemotron_case(
        "nemotron",
        {"tie_word_embeddings": True, "head_dim": 24, "attention_bias": True, "mlp_bias": True, "norm_eps": None},
    ),
    "nemotron-raw-config": nemotron_case(
        "nemotron-long", {"model_type": "nemotron_mine", "partial_rotary_factor": 0.25, "factor": 4.0, "head_dim": None}
    ),
    "internlm2": internlm2_case("internlm2-chat-7b", {"bias": False, "rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "internlm2-multi-head": internlm2_case(
        "internlm2", {"num_key_value_heads": 4, "rope_theta": 1000000, "max_position_embeddings": 32768}
    ),
    "internlm2-groups": internlm2_case("internlm2-20b", {"num_attention_heads": 8, "num_key_value_heads": 2}),
    "baichuan": baichuan_case("Baichuan2-7B-Chat", {}),
    "baichuan-13b": baichuan_case(
        "Baichuan2-13B-Chat", {"max_position_embeddings": None, "model_max_length": 4096, "rope_theta": None}
    ),
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
    "minicpm": minicpm_case("MiniCPM-2B-sft-bf16", {"tie_word_embeddings": True}),
    "minicpm-long": minicpm_case(
        "MiniCPM-1B", {"rope_scaling": FACTORS, "num_key_value_heads": None, "num_hidden_layers": 3}
    ),
    "minicpm3": minicpm3_case("MiniCPM3-4B", {"rope_scaling": SHORT}),
    "minicpm3-untied": minicpm3_case("minicpm3", {"tie_word_embeddings": False, "qk_nope_head_dim": 16, "v_head_dim": 16}),
    "hunyuan-dense": hunyuan_case(
        "Hunyuan-4B-Instruct", {"rope_scaling": DYNAMIC, "max_position_embeddings": 32768, "tie_word_embeddings": True}
    ),
    "hunyuan-dense-tied-with-head": hunyuan_case(
        "hunyuan", {"tie_word_embeddings": True, "attention_bias": True}, extra={"lm_head.weight": ["BF16", [512, 64]]}
    ),
    "hunyuan-dense-plain": hunyuan_case("hunyuan-plain", {"head_dim": None, "num_experts": 1, "rms_norm_eps": None}),
}  # fmt: skip
