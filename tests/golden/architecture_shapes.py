"""What architecture cases are made of: the configuration and tensors of a llama, and ways to change both."""

from __future__ import annotations

from functools import reduce
from typing import Any

Case = dict[str, Any]


def llama_tensors(config: Case, dtype: str = "BF16", prefix: str = "model.", norms: str | None = None) -> Case:
    """Every weight of a llama-shaped model, biases as the configuration says."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    inner, vocab = config["intermediate_size"], config["vocab_size"]
    norms = norms or dtype
    found: Case = {
        f"{prefix}embed_tokens.weight": [dtype, [vocab, hidden]],
        f"{prefix}norm.weight": [norms, [hidden]],
    }
    if not config.get("tie_word_embeddings") and prefix:
        found["lm_head.weight"] = [dtype, [vocab, hidden]]
    for layer in range(config["num_hidden_layers"]):
        name = f"{prefix}layers.{layer}."
        shapes = {
            "self_attn.q_proj": [heads * head_dim, hidden],
            "self_attn.k_proj": [kv_heads * head_dim, hidden],
            "self_attn.v_proj": [kv_heads * head_dim, hidden],
            "self_attn.o_proj": [hidden, heads * head_dim],
            "mlp.gate_proj": [inner, hidden],
            "mlp.up_proj": [inner, hidden],
            "mlp.down_proj": [hidden, inner],
        }
        for part, shape in shapes.items():
            found[f"{name}{part}.weight"] = [dtype, shape]
            if config.get("attention_bias" if part.startswith("self_attn") else "mlp_bias"):
                found[f"{name}{part}.bias"] = [dtype, shape[:1]]
        found[f"{name}input_layernorm.weight"] = [norms, [hidden]]
        found[f"{name}post_attention_layernorm.weight"] = [norms, [hidden]]
    return dict(sorted(found.items()))


def llama_case(directory: str, changes: Case, dtype: str = "BF16", **more: Any) -> Case:
    """A llama configuration with `changes`; a change to None takes a key away."""
    config: Case = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
    }
    config = {key: value for key, value in {**config, **changes}.items() if value is not None}
    shaped = {**config, **more.pop("shaped", {})}
    extra = more.pop("extra", {})
    options = {key: more.pop(key) for key in ("prefix", "norms") if key in more}
    shaped = {key: value for key, value in shaped.items() if value is not None}
    tensors = dict(sorted({**llama_tensors(shaped, dtype, **options), **extra}.items()))
    return {"directory": directory, "config": config, "tensors": tensors, **more}


def family(architecture: str, kind: str, directory: str, changes: Case, **more: Any) -> Case:
    """A llama-shaped case of another class and model type."""
    return llama_case(directory, {"architectures": [architecture], "model_type": kind, **changes}, **more)


LINEAR = {"type": "linear", "factor": 4.0}

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 512,
    "beta_fast": 32,
    "beta_slow": 1.0,
    "attention_factor": 1.1,
}

LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0],
            "long_factor": [1.0, 1.5, 2.25, 3.0, 5.5, 9.0, 17.0, 31.0]}  # fmt: skip

FACTORS = {**LONGROPE, "rope_type": "longrope", "original_max_position_embeddings": 1024}


def configured(case: Case, **changes: object) -> Case:
    """The case with a configuration that has these keys, null where they are None."""
    return case | {"config": {**case["config"], **changes}}


def reconfigured(case: Case, names: dict[str, str]) -> Case:
    """The case with keys of its configuration renamed."""
    return case | {"config": {names.get(key, key): value for key, value in case["config"].items()}}


def without(case: Case, *endings: str) -> Case:
    """The case without the tensors whose names end so."""
    return case | {"tensors": {name: kind for name, kind in case["tensors"].items() if not name.endswith(endings)}}


def merged(case: Case, more: Case) -> Case:
    """The case with more tensors."""
    return case | {"tensors": dict(sorted({**case["tensors"], **more}.items()))}


def with_layers(case: Case, shapes: dict[str, list[int]]) -> Case:
    """The case with more BF16 tensors in every layer, by what follows `model.layers.N.`."""
    layers = range(case["config"]["num_hidden_layers"])
    more = {f"model.layers.{layer}.{name}": ["BF16", shape] for layer in layers for name, shape in shapes.items()}
    return case | {"tensors": dict(sorted({**case["tensors"], **more}.items()))}


def renamed(case: Case, names: dict[str, str]) -> Case:
    """The case with pieces of its names replaced."""
    tensors = {}
    for name, kind in case["tensors"].items():
        tensors[reduce(lambda text, old: text.replace(old, names[old]), names, name)] = kind
    return case | {"tensors": dict(sorted(tensors.items()))}


ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

MLP = ("mlp.gate_proj", "mlp.up_proj")

MLP_WEIGHTS = tuple(f"mlp.{part}_proj.weight" for part in ("gate", "up", "down"))


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
