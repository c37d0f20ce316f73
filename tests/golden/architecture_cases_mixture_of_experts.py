"""Cases of mixtures of experts: routers, shared experts, dense layers among sparse ones, experts fused or apart."""

from __future__ import annotations

from typing import Any

from architecture_cases_llama_shaped import MULTIPLIERS, qwen_case
from architecture_shapes import LLAMA3, LONGROPE, MLP_WEIGHTS, YARN, Case, family, llama_case, merged, with_layers, without


def with_experts(case: Case, place: str, names: dict[str, str], experts: int, inner: int) -> Case:
    """A llama-shaped case with experts, at `place` in each layer, for its MLP; `names`: gate, up, down -> their names."""
    hidden = case["config"]["hidden_size"]
    tensors = {name: shape for name, shape in case["tensors"].items() if ".mlp." not in name}
    for layer in range(case["config"]["num_hidden_layers"]):
        moe = f"model.layers.{layer}.{place}."
        tensors[f"{moe}gate.weight"] = ["BF16", [experts, hidden]]
        for part, name in names.items():
            shape = [hidden, inner] if part == "down" else [inner, hidden]
            tensors |= {f"{moe}experts.{expert}.{name}.weight": ["BF16", shape] for expert in range(experts)}
    return case | {"tensors": dict(sorted(tensors.items()))}


PROJECTIONS = {part: f"{part}_proj" for part in ("gate", "up", "down")}

MIXTRAL = {"gate": "w1", "down": "w2", "up": "w3"}


def mlps(parts: dict[str, int], place: str) -> dict[str, list[int]]:
    """The three projections of an MLP_WEIGHTS, at `place` in a layer, by their inner sizes."""
    return {f"{place}.{part}_proj.weight": [64, inner] if part == "down" else [inner, 64] for part, inner in parts.items()}


def in_layers(case: Case, layers: set[int]) -> Case:
    """Of the case's tensors those in these layers; those in no layer are left out."""
    return {
        name: kind
        for name, kind in case["tensors"].items()
        if name.startswith("model.layers.") and int(name.split(".")[2]) in layers
    }


def fused(case: Case) -> Case:
    """The same experts in two tensors per layer, as transformers has them in memory."""
    tensors = {name: shape for name, shape in case["tensors"].items() if ".experts." not in name}
    for name, (dtype, shape) in case["tensors"].items():
        if name.endswith(".experts.0.gate_proj.weight"):
            inner, hidden = shape
            experts = sum(other.startswith(name.split(".0.gate")[0]) for other in case["tensors"]) // 3
            place = name.removesuffix("0.gate_proj.weight")
            tensors[f"{place}gate_up_proj"] = [dtype, [experts, 2 * inner, hidden]]
            tensors[f"{place}down_proj"] = [dtype, [experts, hidden, inner]]
    return case | {"tensors": dict(sorted(tensors.items()))}


def in_turns(case: Case, part: str, dtypes: list[str]) -> Case:
    """The case with its weights whose names hold `part` in these types, one after the other."""
    tensors = dict(case["tensors"])
    for number, name in enumerate(name for name in tensors if part in name):
        tensors[name] = [dtypes[number % len(dtypes)], tensors[name][1]]
    return case | {"tensors": tensors}


def mixtral_case(directory: str, changes: Case, experts: int = 3) -> Case:
    """A Mixtral: the MLP of a llama, once for each expert, and a router."""
    case = llama_case(
        directory,
        {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": experts, **changes},
    )
    for layer in range(case["config"]["num_hidden_layers"]):
        name, moe = f"model.layers.{layer}.mlp.", f"model.layers.{layer}.block_sparse_moe."
        dense = {part: case["tensors"].pop(f"{name}{part}_proj.weight") for part in ("gate", "up", "down")}
        case["tensors"][f"{moe}gate.weight"] = ["BF16", [experts, case["config"]["hidden_size"]]]
        for expert in range(experts):
            for part, projection in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
                case["tensors"][f"{moe}experts.{expert}.{part}.weight"] = dense[projection]
    return case | {"tensors": dict(sorted(case["tensors"].items()))}


def qwen2moe_case(directory: str, changes: Case, experts: int = 4, inner: int = 32, shared: int = 64) -> Case:
    """A Qwen 1.5 MoE: experts, and one that all texts go through, behind a gate of its own."""
    changes = {
        "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "num_experts": experts,
        "num_experts_per_tok": 2, "moe_intermediate_size": inner, "shared_expert_intermediate_size": shared, **changes,
    }  # fmt: skip
    case = with_experts(qwen_case(directory, 2, changes), "mlp", PROJECTIONS, experts, inner)
    for layer in range(case["config"]["num_hidden_layers"]):
        mlp = f"model.layers.{layer}.mlp."
        case["tensors"][f"{mlp}shared_expert_gate.weight"] = ["BF16", [1, 64]]
        for part in ("gate", "up", "down"):
            shape = [64, shared] if part == "down" else [shared, 64]
            case["tensors"][f"{mlp}shared_expert.{part}_proj.weight"] = ["BF16", shape]
    return case | {"tensors": dict(sorted(case["tensors"].items()))}


def qwen3moe_case(directory: str, changes: Case, experts: int = 5, inner: int = 32) -> Case:
    """A Qwen 3 MoE."""
    changes = {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": experts, "head_dim": 32,
        "num_experts_per_tok": 2, "moe_intermediate_size": inner, **changes,
    }  # fmt: skip
    return with_experts(qwen_case(directory, 3, changes), "mlp", PROJECTIONS, experts, inner)


def phimoe_case(directory: str, changes: Case, experts: int = 4) -> Case:
    """A Phi 3.5 MoE: norms with biases, and where the configuration says so biases everywhere else."""
    changes = {
        "architectures": ["PhiMoEForCausalLM"], "model_type": "phimoe", "num_local_experts": experts,
        "num_experts_per_tok": 2, "original_max_position_embeddings": 512, **changes,
    }  # fmt: skip
    case = with_experts(llama_case(directory, changes), "block_sparse_moe", MIXTRAL, experts, 96)
    for name, (dtype, shape) in list(case["tensors"].items()):
        if name.endswith(("norm.weight",)):
            case["tensors"][name.replace("weight", "bias")] = [dtype, shape]
    if changes.get("lm_head_bias"):
        case["tensors"]["lm_head.bias"] = ["BF16", [512]]
    return case | {"tensors": dict(sorted(case["tensors"].items()))}


def olmoe_case(directory: str, changes: Case, experts: int = 5) -> Case:
    """An OLMoE."""
    changes = {"num_experts": experts, "num_experts_per_tok": 2, **changes}
    case = family("OlmoeForCausalLM", "olmoe", directory, changes)
    case = with_experts(case, "mlp", PROJECTIONS, experts, case["config"]["intermediate_size"])
    heads, kv_heads = case["config"]["num_attention_heads"], case["config"].get("num_key_value_heads")
    shapes = {"q": [64], "k": [(kv_heads or heads) * 64 // heads]}
    return with_layers(case, {f"self_attn.{name}_norm.weight": shape for name, shape in shapes.items()})


def granitemoe_case(directory: str, changes: Case, experts: int = 4, shared: int = 0) -> Case:
    """A Granite MoE; with a shared expert of a class of its own."""
    name, kind = ("GraniteMoeSharedForCausalLM", "granitemoeshared") if shared else ("GraniteMoeForCausalLM", "granitemoe")
    changes = {"num_local_experts": experts, "num_experts_per_tok": 2, **MULTIPLIERS, **changes}
    case = family(name, kind, directory, changes | ({"shared_intermediate_size": shared} if shared else {}))
    case = without(case, "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight")
    moe = {
        "block_sparse_moe.router.layer.weight": [experts, 64],
        "block_sparse_moe.input_linear.weight": [experts, 192, 64],
        "block_sparse_moe.output_linear.weight": [experts, 64, 96],
    }
    more = {"shared_mlp.input_linear.weight": [2 * shared, 64], "shared_mlp.output_linear.weight": [64, shared]}
    return with_layers(case, moe | (more if shared else {}))


def ernie_moe_case(
    directory: str, changes: Case, experts: int = 3, shared: int = 2, sparse: tuple[int, ...] = (1, 2)
) -> Case:
    """An ERNIE 4.5 MoE of three layers, those of `sparse` with experts."""
    changes = {
        "num_hidden_layers": 3, "head_dim": 16, "moe_num_experts": experts, "moe_k": 2, "moe_intermediate_size": 32,
        "moe_num_shared_experts": shared, "moe_layer_start_index": 1, "moe_layer_interval": 1, "tie_word_embeddings": True,
        **changes,
    }  # fmt: skip
    dense = family("Ernie4_5_MoeForCausalLM", "ernie4_5_moe", directory, changes)
    case = with_layers(
        with_experts(dense, "mlp", PROJECTIONS, experts, 32),
        {
            "mlp.moe_statics.e_score_correction_bias": [1, experts],
            **{f"mlp.shared_experts.{name}_proj.weight": [32 * shared, 64] for name in ("gate", "up") if shared},
            **({"mlp.shared_experts.down_proj.weight": [64, 32 * shared]} if shared else {}),
        },
    )
    tensors = {}
    for layer in range(3):
        source = case if layer in sparse else dense
        tensors |= {name: kind for name, kind in source["tensors"].items() if f".layers.{layer}." in name}
    tensors |= {name: kind for name, kind in dense["tensors"].items() if ".layers." not in name}
    ahead = {f"model.{name}.0.weight": ["BF16", [64]] for name in ("mtp_emb_norm", "mtp_hidden_norm")}
    return case | {"tensors": dict(sorted({**tensors, **ahead}.items()))}


def glm4moe_case(directory: str, changes: Case, ahead: int = 1, experts: int = 3) -> Case:
    """A GLM 4.5 of three layers, the first without experts, and layers that predict further ahead."""
    changes = {
        "num_hidden_layers": 3, "n_routed_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "n_shared_experts": 1, "first_k_dense_replace": 1, "head_dim": 32, "attention_bias": True, "norm_topk_prob": True,
        "routed_scaling_factor": 2.5, "use_qk_norm": True, "num_nextn_predict_layers": ahead, **changes,
    }  # fmt: skip
    shape = {"num_hidden_layers": 3 + ahead, "attention_bias": changes["attention_bias"]}
    dense = family("Glm4MoeForCausalLM", "glm4_moe", directory, changes, shaped=shape)
    dense = without(dense, "o_proj.bias")
    tensors = {name: kind for name, kind in dense["tensors"].items() if ".mlp." not in name or ".layers.0." in name}
    for layer in range(3 + ahead):
        place = f"model.layers.{layer}."
        more: Case = {f"self_attn.{part}_norm.weight": [32] for part in "qk"} if changes["use_qk_norm"] else {}
        if layer:
            more |= {"mlp.gate.weight": [experts, 64], "mlp.gate.e_score_correction_bias": [experts]}
            for expert in [f"experts.{number}" for number in range(experts)] + ["shared_experts"]:
                more |= {f"mlp.{expert}.{name}_proj.weight": [32, 64] for name in ("gate", "up")}
                more[f"mlp.{expert}.down_proj.weight"] = [64, 32]
        if layer > 2:
            more |= {f"{name}.weight": [64] for name in ("enorm", "hnorm", "shared_head.norm")}
            more |= {f"{name}.weight": [512, 64] for name in ("embed_tokens", "shared_head.head")}
            more["eh_proj.weight"] = [64, 128]
        tensors |= {place + name: ["BF16", shape] for name, shape in more.items()}
    return dense | {"tensors": dict(sorted(tensors.items()))}


def dots1_case(directory: str, changes: Case, **more: Any) -> Case:
    """A dots.llm1: a GLM 4.5 with norms for heads and nothing ahead."""
    case = glm4moe_case(
        directory, {"use_qk_norm": True, "attention_bias": False, "num_key_value_heads": 4, **changes}, ahead=0, **more
    )
    config = {key: value for key, value in case["config"].items() if key not in ("use_qk_norm", "num_nextn_predict_layers")}
    return case | {"config": {**config, "architectures": ["Dots1ForCausalLM"], "model_type": "dots1"}}


def deepseek_case(case: Case, dense: int, experts: int, shared: int, inner: int = 24) -> Case:
    """The case with experts, and beside them shared ones, in the layers after the first `dense`."""
    sparse = with_experts(case, "mlp", PROJECTIONS, experts, inner)
    if shared:
        sparse = with_layers(sparse, mlps(dict.fromkeys(PROJECTIONS, shared * inner), "mlp.shared_experts"))
    layers = range(case["config"]["num_hidden_layers"])
    outside = {name: kind for name, kind in case["tensors"].items() if not name.startswith("model.layers.")}
    inside = in_layers(case, set(layers[:dense])) | in_layers(sparse, set(layers[dense:]))
    return case | {"tensors": dict(sorted({**outside, **inside}.items()))}


def deepseek1_case(directory: str, changes: Case, dense: int = 1, experts: int = 6, shared: int = 2) -> Case:
    """A DeepSeek MoE, whose class transformers does not know."""
    sizes = {
        "n_routed_experts": experts, "n_shared_experts": shared, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "first_k_dense_replace": dense, "moe_layer_freq": 1, "scoring_func": "softmax", **changes,
    }  # fmt: skip
    return deepseek_case(family("DeepseekForCausalLM", "deepseek", directory, sizes), dense, experts, shared)


def llama4_case(directory: str, changes: Case, experts: int = 3, every: int = 1) -> Case:
    """A Llama 4: experts in every `every`-th layer, which also have a shared one."""
    changes = {
        "num_local_experts": experts, "num_experts_per_tok": 1, "interleave_moe_layer_step": every, "head_dim": 16,
        "intermediate_size": 48, "intermediate_size_mlp": 96, **changes,
    }  # fmt: skip
    case = without(family("Llama4ForCausalLM", "llama4_text", directory, changes), *MLP_WEIGHTS)
    dense = with_layers(case, mlps(dict.fromkeys(PROJECTIONS, 96), "feed_forward"))
    moe = {
        "feed_forward.router.weight": [experts, 64],
        "feed_forward.experts.gate_up_proj": [experts, 64, 96],
        "feed_forward.experts.down_proj": [experts, 48, 64],
    }
    sparse = with_layers(case, moe | mlps(dict.fromkeys(PROJECTIONS, 48), "feed_forward.shared_expert"))
    layers = set(range(case["config"]["num_hidden_layers"]))
    with_moe = {layer for layer in layers if (layer + 1) % every == 0}
    return merged(case, in_layers(dense, layers - with_moe) | in_layers(sparse, with_moe))


def gpt_oss_case(directory: str, changes: Case, experts: int = 3) -> Case:
    """A GPT-OSS in 16 bits."""
    changes = {
        "num_local_experts": experts, "num_experts_per_tok": 2, "sliding_window": 128, "head_dim": 16,
        "attention_bias": True,
        "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
                         "original_max_position_embeddings": 4096}, **changes,
    }  # fmt: skip
    case = without(family("GptOssForCausalLM", "gpt_oss", directory, changes), *MLP_WEIGHTS)
    heads = case["config"]["num_attention_heads"]
    return with_layers(
        case,
        {
            "self_attn.sinks": [heads],
            "mlp.router.weight": [experts, 64],
            "mlp.router.bias": [experts],
            "mlp.experts.gate_up_proj": [experts, 64, 192],
            "mlp.experts.gate_up_proj_bias": [experts, 192],
            "mlp.experts.down_proj": [experts, 96, 64],
            "mlp.experts.down_proj_bias": [experts, 64],
        },
    )


CASES: dict[str, Case] = {
    "mixtral": mixtral_case("Mixtral-8x7B-v0.1", {}),
    "mixtral-many": mixtral_case("tiny-moe", {"num_experts_per_tok": 4, "head_dim": 16}, experts=12),
    "mixtral-mixed-types": in_turns(mixtral_case("mixed-experts", {}), ".experts.", ["BF16", "F32", "F16"]),
    "qwen2moe": qwen2moe_case("Qwen1.5-MoE-A2.7B-Chat", {"rope_theta": 1000000.0}),
    "qwen2moe-tied": qwen2moe_case(
        "tiny-qwen2moe",
        {"tie_word_embeddings": True, "num_attention_heads": 8, "rope_scaling": YARN, "norm_topk_prob": True},
        experts=7, inner=48, shared=32,
    ),
    "qwen2moe-fused": fused(qwen2moe_case("fused", {"num_experts_per_tok": 3}, experts=3)),
    "qwen3moe": qwen3moe_case("Qwen3-30B-A3B", {"rope_theta": 1000000.0, "norm_topk_prob": True}),
    "qwen3moe-tied": qwen3moe_case(
        "Qwen3-biased", {"tie_word_embeddings": True, "attention_bias": True, "head_dim": 16, "num_key_value_heads": 1},
        experts=12, inner=16,
    ),
    "qwen3moe-fused": fused(qwen3moe_case("Qwen3-fused", {"rope_scaling": YARN})),
    "phimoe": phimoe_case("Phi-3.5-MoE-instruct", {"attention_bias": True, "lm_head_bias": True}),
    "phimoe-long": phimoe_case(
        "phimoe-long",
        {"rope_scaling": {**LONGROPE, "short_mscale": 1.2, "long_mscale": 1.3}, "max_position_embeddings": 131072},
        experts=6,
    ),
    "phimoe-plain": phimoe_case(
        "phimoe-plain", {"tie_word_embeddings": True, "num_attention_heads": 8, "sliding_window": 99}
    ),
    "olmoe": olmoe_case("OLMoE-1B-7B-0924", {"num_key_value_heads": 4, "clip_qkv": None, "norm_topk_prob": False}),
    "olmoe-tied": olmoe_case(
        "olmoe", {"tie_word_embeddings": True, "rms_norm_eps": 1e-6, "intermediate_size": 32, "attention_bias": True},
        experts=11,
    ),
    "olmoe-yarn": olmoe_case("olmoe-yarn", {"rope_scaling": YARN}, experts=3),
    "olmoe-raw-config": olmoe_case("olmoe-raw", {"model_type": "olmoe_of_mine", "rms_norm_eps": None}),
    "granitemoe": granitemoe_case("granite-3.1-3b-a800m-instruct", {"tie_word_embeddings": True}),
    "granitemoe-shared": granitemoe_case("granite-moe-shared", {"attention_bias": True}, experts=6, shared=48),
    "ernie4_5-moe": ernie_moe_case("ERNIE-4.5-21B-A3B-PT", {"rope_theta": 500000.0}),
    "ernie4_5-moe-interval": ernie_moe_case(
        "ernie-moe", {"moe_layer_interval": 2, "moe_layer_start_index": 0, "moe_num_shared_experts": 0, "use_bias": False,
                      "tie_word_embeddings": False}, experts=5, shared=0, sparse=(1,),
    ),
    "glm4moe": glm4moe_case("GLM-4.5-Air", {"rope_theta": 1000000, "partial_rotary_factor": 0.5}),
    "glm4moe-not-ahead": glm4moe_case("GLM-4.6", {"num_nextn_predict_layers": 1}, ahead=0),
    "glm4moe-sparse-config": glm4moe_case(
        "glm4moe",
        {"use_qk_norm": False, "attention_bias": False, "num_nextn_predict_layers": 0, "rope_theta": None,
         "routed_scaling_factor": None, "norm_topk_prob": None, "rms_norm_eps": None, "head_dim": 16,
         "tie_word_embeddings": True},
        ahead=0, experts=5,
    ),
    "dots1": dots1_case("dots.llm1.inst", {"scoring_func": "sigmoid", "rope_theta": 10000000, "sliding_window": None}),
    "dots1-sparse-config": dots1_case(
        "dots1", {"scoring_func": "sigmoid", "rms_norm_eps": None, "rope_theta": None, "norm_topk_prob": None,
                  "max_position_embeddings": None}, experts=5,
    ),
    "deepseek": deepseek1_case("deepseek-moe-16b-chat", {}),
    "deepseek-biases": deepseek1_case(
        "deepseek", {"attention_bias": True, "num_hidden_layers": 4, "num_attention_heads": 8}, dense=2, experts=9, shared=1
    ),
    "deepseek-all-dense": deepseek1_case("deepseek", {"n_routed_experts": 64}, dense=2, experts=0),
    "deepseek-yarn": deepseek1_case("deepseek-yarn", {"rope_scaling": YARN}),
    "llama4": llama4_case("Llama-4-Scout-17B-16E", {"rope_scaling": {**LLAMA3, "factor": 8.0}, "rope_theta": 500000.0}),
    "llama4-interleaved": llama4_case(
        "Llama-4-Maverick", {"num_hidden_layers": 4, "attention_bias": True, "tie_word_embeddings": True},
        every=2, experts=5,
    ),
    "llama4-full-attention": llama4_case("llama4", {"layer_types": ["full_attention"] * 2, "num_key_value_heads": 4}),
    "gpt-oss-sparse-config": gpt_oss_case("gpt-oss-sparse", {"rope_scaling": None, "rope_theta": None}),
    "gpt-oss": gpt_oss_case("gpt-oss-20b-BF16", {"rope_theta": 150000}),
    "gpt-oss-tied": gpt_oss_case(
        "gpt-oss", {"tie_word_embeddings": True, "sliding_window": 64, "num_attention_heads": 8, "head_dim": 24}, experts=5
    ),
}  # fmt: skip
