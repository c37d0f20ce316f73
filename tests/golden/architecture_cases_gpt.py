"""Cases of families with layer norms, and biases beside most of their weights: GPT-2 and what came of it."""

from __future__ import annotations

from typing import Any

from architecture_shapes import YARN, Case

Shapes = dict[str, list[int]]


def case(directory: str, config: Case, top: Shapes, layer: Shapes, place: str, layers: int = 2, **more: Any) -> Case:
    """A checkpoint with the tensors `top`, and `layer` in each layer; `place` is a layer's prefix. Lists are shapes."""
    shapes = dict(top)
    for number in range(layers):
        shapes |= {f"{place.format(number)}{name}": shape for name, shape in layer.items()}
    dtype = more.pop("dtype", "BF16")
    tensors = {name: [dtype, shape] for name, shape in sorted(shapes.items())}
    given = {key: value for key, value in config.items() if value is not None}
    return {"directory": directory, "config": given, "tensors": tensors, **more}


def linear(name: str, rows: int, columns: int, bias: bool = True) -> Shapes:
    """A linear layer."""
    weight: Shapes = {f"{name}.weight": [rows, columns]}
    return weight | ({f"{name}.bias": [rows]} if bias else {})


def norm(name: str, size: int = 64, bias: bool = True) -> Shapes:
    """A layer norm."""
    return {f"{name}.weight": [size]} | ({f"{name}.bias": [size]} if bias else {})


def transposed(name: str, rows: int, columns: int) -> Shapes:
    """A `Conv1D`, whose weight is stored input first."""
    return {f"{name}.weight": [columns, rows], f"{name}.bias": [rows]}


def gpt2_case(directory: str, changes: Case, prefix: str = "transformer.", inner: int = 256, **more: Any) -> Case:
    """A GPT-2."""
    config = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4,
        "n_positions": 128, "n_ctx": 128, "vocab_size": 512, "layer_norm_epsilon": 1e-5, **changes,
    }  # fmt: skip
    top = {f"{prefix}wte.weight": [512, 64], f"{prefix}wpe.weight": [128, 64], **norm(f"{prefix}ln_f")}
    layer = {
        **norm("ln_1"), **transposed("attn.c_attn", 192, 64), **transposed("attn.c_proj", 64, 64),
        **norm("ln_2"), **transposed("mlp.c_fc", inner, 64), **transposed("mlp.c_proj", 64, inner),
    }  # fmt: skip
    if changes.get("tie_word_embeddings") is False:
        top["lm_head.weight"] = [512, 64]
    return case(directory, config, top, layer, f"{prefix}h.{{}}.", **more)


def gptneox_case(directory: str, changes: Case, heads: int = 4, **more: Any) -> Case:
    """A GPT-NeoX as before transformers 5: what that makes of its configuration, the reference cannot read."""
    config = {
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox_old", "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": heads, "vocab_size": 512, "max_position_embeddings": 256,
        "rotary_pct": 0.25, "rotary_emb_base": 10000, "layer_norm_eps": 1e-5, "use_parallel_residual": True, **changes,
    }  # fmt: skip
    bias = changes.get("attention_bias", True)
    top = {"gpt_neox.embed_in.weight": [512, 64], "embed_out.weight": [512, 64], **norm("gpt_neox.final_layer_norm")}
    layer = {
        **norm("input_layernorm"), **norm("post_attention_layernorm"),
        **linear("attention.query_key_value", 192, 64, bias), **linear("attention.dense", 64, 64, bias),
        **linear("mlp.dense_h_to_4h", 96, 64), **linear("mlp.dense_4h_to_h", 64, 96),
    }  # fmt: skip
    return case(directory, config, top, layer, "gpt_neox.layers.{}.", **more)


def bigcode_case(directory: str, changes: Case, heads: int = 4, **more: Any) -> Case:
    """A StarCoder, all of whose heads share one key and one value."""
    config = {
        "architectures": ["GPTBigCodeForCausalLM"], "model_type": "gpt_bigcode", "n_embd": 64, "n_layer": 2,
        "n_head": heads, "n_positions": 96, "vocab_size": 512, "multi_query": True, **changes,
    }  # fmt: skip
    top = {"transformer.wte.weight": [512, 64], "transformer.wpe.weight": [96, 64], **norm("transformer.ln_f")}
    if changes.get("tie_word_embeddings") is False:
        top["lm_head.weight"] = [512, 64]
    layer = {
        **norm("ln_1"), **linear("attn.c_attn", 64 + 2 * (64 // heads), 64), **linear("attn.c_proj", 64, 64),
        **norm("ln_2"), **linear("mlp.c_fc", 256, 64), **linear("mlp.c_proj", 64, 256),
    }  # fmt: skip
    return case(directory, config, top, layer, "transformer.h.{}.", **more)


def starcoder2_case(directory: str, changes: Case, kv_heads: int = 2, **more: Any) -> Case:
    """A StarCoder 2."""
    config = {
        "architectures": ["Starcoder2ForCausalLM"], "model_type": "starcoder2", "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": kv_heads, "vocab_size": 512,
        "max_position_embeddings": 256, "norm_epsilon": 1e-5, "rope_theta": 999999.5, **changes,
    }  # fmt: skip
    bias = changes.get("use_bias", True)
    top = {"model.embed_tokens.weight": [512, 64], **norm("model.norm")}
    if changes.get("tie_word_embeddings") is False:
        top["lm_head.weight"] = [512, 64]
    layer = {
        **norm("input_layernorm"), **norm("post_attention_layernorm"), **linear("self_attn.q_proj", 64, 64, bias),
        **linear("self_attn.k_proj", 16 * kv_heads, 64, bias), **linear("self_attn.v_proj", 16 * kv_heads, 64, bias),
        **linear("self_attn.o_proj", 64, 64, bias), **linear("mlp.c_fc", 96, 64, bias),
        **linear("mlp.c_proj", 64, 96, bias),
    }  # fmt: skip
    return case(directory, config, top, layer, "model.layers.{}.", **more)


def falcon_case(directory: str, changes: Case, heads: int = 4, kv_heads: int = 1, norms: int = 1, **more: Any) -> Case:
    """A Falcon: each key and value stands behind the queries that share it."""
    config = {
        "architectures": ["FalconForCausalLM"], "model_type": "falcon", "hidden_size": 16 * heads, "num_hidden_layers": 2,
        "num_attention_heads": heads, "vocab_size": 512, "layer_norm_epsilon": 1e-5, "bias": False, **changes,
    }  # fmt: skip
    width = 16 * heads
    top = {"transformer.word_embeddings.weight": [512, width], **norm("transformer.ln_f", width)}
    if changes.get("tie_word_embeddings") is False:
        top["lm_head.weight"] = [512, width]
    norm_names = ["input_layernorm"] if norms == 1 else ["ln_attn", "ln_mlp"]
    layer = {
        **linear("self_attention.query_key_value", 16 * (heads + 2 * kv_heads), width, False),
        **linear("self_attention.dense", width, width, False), **linear("mlp.dense_h_to_4h", 4 * width, width, False),
        **linear("mlp.dense_4h_to_h", width, 4 * width, False),
    }  # fmt: skip
    for name in norm_names:
        layer |= norm(name, width)
    return case(directory, config, top, layer, "transformer.h.{}.", **more)


def mpt_case(
    directory: str, changes: Case, attention: Case | None = None, kv_heads: int = 4, bias: bool = False, **more: Any
) -> Case:
    """An MPT: positions by what is added to scores, no biases unless asked for."""
    config = {
        "architectures": ["MPTForCausalLM"], "model_type": "mpt", "d_model": 64, "n_heads": 4, "n_layers": 2,
        "vocab_size": 512, "max_seq_len": 256, "expansion_ratio": 4, "attn_config": attention, **changes,
    }  # fmt: skip
    top = {"transformer.wte.weight": [512, 64], **norm("transformer.norm_f", bias=bias), **more.pop("extra", {})}
    layer = {
        **norm("norm_1", bias=bias), **norm("norm_2", bias=bias), **linear("attn.Wqkv", 64 + 32 * kv_heads, 64, bias),
        **linear("attn.out_proj", 64, 64, bias), **linear("ffn.up_proj", 256, 64, bias),
        **linear("ffn.down_proj", 64, 256, bias), **more.pop("each", {}),
    }  # fmt: skip
    return case(directory, config, top, layer, "transformer.blocks.{}.", **more)


def bloom_case(directory: str, changes: Case, heads: int = 4, prefix: str = "transformer.", **more: Any) -> Case:
    """A BLOOM."""
    config = {
        "architectures": ["BloomForCausalLM"], "model_type": "bloom", "hidden_size": 64, "n_layer": 2, "n_head": heads,
        "vocab_size": 512, "layer_norm_epsilon": 1e-5, **changes,
    }  # fmt: skip
    top = {
        f"{prefix}word_embeddings.weight": [512, 64], **norm(f"{prefix}word_embeddings_layernorm"), **norm(f"{prefix}ln_f"),
    }  # fmt: skip
    layer = {
        **norm("input_layernorm"), **norm("post_attention_layernorm"),
        **linear("self_attention.query_key_value", 192, 64), **linear("self_attention.dense", 64, 64),
        **linear("mlp.dense_h_to_4h", 256, 64), **linear("mlp.dense_4h_to_h", 64, 256),
    }  # fmt: skip
    return case(directory, config, top, layer, f"{prefix}h.{{}}.", **more)


def phi2_case(directory: str, changes: Case, heads: int = 4, **more: Any) -> Case:
    """A Phi 1 or 2: attention and MLP beside each other, behind one norm."""
    config = {
        "architectures": ["PhiForCausalLM"], "model_type": "phi", "hidden_size": 64, "intermediate_size": 256,
        "num_hidden_layers": 2, "num_attention_heads": heads, "vocab_size": 512, "max_position_embeddings": 256,
        "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.4, **changes,
    }  # fmt: skip
    top = {"model.embed_tokens.weight": [512, 64], **norm("model.final_layernorm"), **linear("lm_head", 512, 64)}
    layer = norm("input_layernorm")
    for name in ("q_proj", "k_proj", "v_proj", "dense"):
        layer |= linear(f"self_attn.{name}", 64, 64)
    layer |= linear("mlp.fc1", 256, 64) | linear("mlp.fc2", 64, 256)
    return case(directory, config, top, layer, "model.layers.{}.", **more)


def stablelm_case(directory: str, changes: Case, kv_heads: int = 4, **more: Any) -> Case:
    """A StableLM: a llama with layer norms; some have biases, some both halves of a layer side by side."""
    config = {
        "architectures": ["StableLmForCausalLM"], "model_type": "stablelm", "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": kv_heads, "vocab_size": 512,
        "max_position_embeddings": 256, "layer_norm_eps": 1e-5, **changes,
    }  # fmt: skip
    bias = changes.get("use_qkv_bias", False)
    top = {"model.embed_tokens.weight": [512, 64], **norm("model.norm")}
    if not changes.get("tie_word_embeddings"):
        top["lm_head.weight"] = [512, 64]
    layer = {
        **norm("input_layernorm"), **linear("self_attn.q_proj", 64, 64, bias), **linear("self_attn.o_proj", 64, 64, False),
        **linear("self_attn.k_proj", 16 * kv_heads, 64, bias), **linear("self_attn.v_proj", 16 * kv_heads, 64, bias),
        **linear("mlp.gate_proj", 96, 64, False), **linear("mlp.up_proj", 96, 64, False),
        **linear("mlp.down_proj", 64, 96, False),
    }  # fmt: skip
    if not changes.get("use_parallel_residual"):
        layer |= norm("post_attention_layernorm")
    return case(directory, config, top, layer, "model.layers.{}.", **more)


CASES: dict[str, Case] = {
    "phi2": phi2_case("phi-2", {}),
    "phi2-odd": phi2_case(
        "phi-1_5", {"num_attention_heads": 2, "partial_rotary_factor": 0.5, "rope_theta": 5000.0}, heads=2, dtype="F16"
    ),
    "phi2-sparse-config": phi2_case(
        "phi", {"partial_rotary_factor": None, "max_position_embeddings": None, "layer_norm_eps": None}
    ),
    "gpt2": gpt2_case("gpt2", {}),
    "gpt2-untied": gpt2_case("gpt2-medium", {"n_head": 2, "tie_word_embeddings": False}, dtype="F32"),
    "gpt2-bare": gpt2_case("openai-gpt2", {"n_head": 1, "layer_norm_epsilon": None}, prefix="", dtype="F16"),
    "gptneox": gptneox_case("pythia-70m", {}),
    "gptneox-sequential": gptneox_case(
        "gpt-neox-20b", {"use_parallel_residual": False, "rotary_pct": 1.0, "attention_bias": False}, heads=2, dtype="F16"
    ),
    "gpt-bigcode": bigcode_case("starcoderbase-1b", {"layer_norm_epsilon": 1e-6}),
    "gpt-bigcode-untied": bigcode_case("santacoder", {"tie_word_embeddings": False}, heads=2),
    "starcoder2": starcoder2_case("starcoder2-3b", {"sliding_window": 4096}),
    "starcoder2-untied": starcoder2_case(
        "starcoder2-15b", {"tie_word_embeddings": False, "use_bias": False, "rope_scaling": YARN}, kv_heads=1
    ),
    "starcoder2-sparse-config": starcoder2_case(
        "starcoder2", {"rope_theta": None, "norm_epsilon": None, "max_position_embeddings": None}, kv_heads=4
    ),
    "falcon-old": falcon_case(
        "falcon-7b-instruct",
        {"architectures": ["RWForCausalLM"], "model_type": "RefinedWebModel", "num_attention_heads": None, "n_head": 3,
         "num_hidden_layers": None, "n_layer": 2, "multi_query": True},
        heads=3,
    ),
    "falcon-old-groups": falcon_case(
        "falcon-40b",
        {"architectures": ["RWForCausalLM"], "model_type": "RefinedWeb", "num_attention_heads": None, "n_head": 4,
         "num_hidden_layers": None, "n_layer": 2, "n_head_kv": 2, "tie_word_embeddings": False},
        kv_heads=2, norms=2,
    ),
    "falcon": falcon_case(
        "falcon-180B", {"num_kv_heads": 3, "new_decoder_architecture": True, "multi_query": True},
        heads=6, kv_heads=3, norms=2,
    ),
    "falcon-one-norm": falcon_case(
        "falcon-11B", {"num_kv_heads": 2, "new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}, kv_heads=2
    ),
    "mpt": mpt_case("mpt-7b", {}, {"alibi": True, "alibi_bias_max": 16, "clip_qkv": 6.0}),
    "mpt-groups": mpt_case(
        "mpt-groups", {"no_bias": False}, {"alibi": False, "kv_n_heads": 2}, kv_heads=2, bias=True,
        extra={"transformer.wpe.weight": [256, 64], "lm_head.weight": [512, 64]},
    ),
    "mpt-sparse-config": mpt_case(
        "mpt", {"max_seq_len": None, "expansion_ratio": None},
        each={"attn.q_ln.weight": [64], "attn.k_ln.weight": [64]},
    ),
    "bloom": bloom_case("bloom-560m", {"seq_length": 2048}),
    "bloom-odd": bloom_case(
        "bloomz", {"hidden_size": None, "n_embed": 64, "n_head": None, "num_attention_heads": 2}, heads=2, dtype="F16"
    ),
    "bloom-bare": bloom_case("bloom-bare", {"architectures": ["BloomModel"]}, heads=1, prefix=""),
    "stablelm": stablelm_case("stablelm-3b-4e1t", {}),
    "stablelm-parallel": stablelm_case(
        "stablelm-2-1_6b",
        {"use_qkv_bias": True, "use_parallel_residual": True, "partial_rotary_factor": 0.5, "tie_word_embeddings": True},
        kv_heads=2,
    ),
    "stablelm-raw-config": stablelm_case(
        "stablelm-raw",
        {"architectures": ["StableLMEpochForCausalLM"], "model_type": "stablelm_epoch", "rope_pct": 0.25,
         "norm_eps": 1e-6, "layer_norm_eps": None, "use_qkv_bias": True},
    ),
}  # fmt: skip
