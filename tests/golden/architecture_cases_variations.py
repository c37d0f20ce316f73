"""Cases that `fuzz_architectures.py` found to differ once: keys elsewhere, null or absent, other names, mixed types."""

from __future__ import annotations

from architecture_cases import LLAMA3, YARN, Case, llama_case, mixtral_case
from architecture_cases_open import cohere_case, family, olmo_case, olmoe_case, with_layers
from architecture_cases_renamed import baichuan_case, ernie_case, exaone_case, hunyuan_case, nemotron_case, renamed
from architecture_cases_sparse import deepseek1_case, deepseek2_case, gpt_oss_case, lfm2_case, merged

LINEAR = {"type": "linear", "factor": 4.0}


def configured(case: Case, **changes: object) -> Case:
    """The case with a configuration that has these keys, null where they are None."""
    return case | {"config": {**case["config"], **changes}}


def bare(case: Case, architecture: str, wrapping: str) -> Case:
    """The model of the case without its head, within a larger one."""
    tensors = {
        f"{wrapping}{name.removeprefix('model.')}": kind for name, kind in case["tensors"].items() if "lm_head" not in name
    }
    return case | {"config": case["config"] | {"architectures": [architecture]}, "tensors": tensors}


def in_turns(case: Case, part: str, dtypes: list[str]) -> Case:
    """The case with its weights whose names hold `part` in these types, one after the other."""
    tensors = dict(case["tensors"])
    for number, name in enumerate(name for name in tensors if part in name):
        tensors[name] = [dtypes[number % len(dtypes)], tensors[name][1]]
    return case | {"tensors": tensors}


def as_saved_by_transformers_5(directory: str, changes: Case) -> Case:
    """An EXAONE 3 as transformers 5.24 saves it: a llama but for the names of its tensors."""
    case = exaone_case(directory, {"head_dim": 16, **changes})
    config = llama_case(directory, {"model_type": "exaone", "head_dim": 16, **changes})["config"]
    return case | {"config": config}


def orion_case(directory: str, changes: Case) -> Case:
    """An Orion: a llama whose norms have biases."""
    case = family("OrionForCausalLM", "orion", directory, changes)
    norms = {name.replace("weight", "bias"): kind for name, kind in case["tensors"].items() if name.endswith("norm.weight")}
    return merged(case, norms)


def with_mla_biases(case: Case) -> Case:
    """A DeepSeek V2 with `attention_bias`."""
    shapes = {"self_attn.q_a_proj.bias": [28], "self_attn.kv_a_proj_with_mqa.bias": [28], "self_attn.o_proj.bias": [64]}
    return with_layers(configured(case, attention_bias=True), shapes)


CASES: dict[str, Case] = {
    "llama-bare-wrapped": bare(llama_case("inside", {}), "LlamaModel", "language_model."),
    "llama-raw-silent": llama_case(
        "raw-silent", {"model_type": "llama_of_mine", "tie_word_embeddings": None}, shaped={"tie_word_embeddings": True}
    ),
    "llama-null-theta": configured(llama_case("null-theta", {"rope_scaling": LINEAR}), rope_theta=None, head_dim=None),
    "llama-text-model": renamed(llama_case("text-model", {}), {"model.": "model.text_model."}),
    "llama-of-exaone": as_saved_by_transformers_5("EXAONE-3.5", {"rope_scaling": LLAMA3, "tie_word_embeddings": True}),
    "llama-of-exaone-sparse-config": as_saved_by_transformers_5("exaone", {"max_position_embeddings": None}),
    "mistral-null-keys": configured(
        llama_case(
            "null-keys",
            {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "num_key_value_heads": 4,
             "rope_theta": None},
        ),
        num_key_value_heads=None,
    ),
    "mixtral-mixed-types": in_turns(mixtral_case("mixed-experts", {}), ".experts.", ["BF16", "F32", "F16"]),
    "qwen2-null-keys": configured(
        with_layers(
            family("Qwen2ForCausalLM", "qwen2", "qwen2-null", {"num_key_value_heads": 4}),
            {f"self_attn.{part}_proj.bias": [64] for part in "qkv"},
        ),
        num_key_value_heads=None, sliding_window=None, rope_scaling=None,
    ),
    "olmo-biases": olmo_case("olmo-biased", {"attention_bias": True, "clip_qkv": None}),
    "olmoe-raw-config": olmoe_case("olmoe-raw", {"model_type": "olmoe_of_mine", "rms_norm_eps": None}),
    "command-r-linear": cohere_case("command-r-linear", {"rope_scaling": LINEAR}),
    "cohere2-yarn": cohere_case("cohere2-yarn", {"rope_scaling": YARN, "rotary_pct": 1.0}, version="2"),
    "deepseek-yarn": deepseek1_case("deepseek-yarn", {"rope_scaling": YARN}),
    "deepseek2-raw-config": deepseek2_case("deepseek2-raw", {"model_type": "deepseek_of_mine", "rope_scaling": YARN}),
    "deepseek2-biases": with_mla_biases(deepseek2_case("deepseek2-biased", {})),
    "nemotron-linear": nemotron_case("nemotron-linear", {"partial_rotary_factor": 0.5, "rope_scaling": LINEAR}),
    "nemotron-no-factor": nemotron_case(
        "nemotron-zero", {"model_type": "nemotron_mine", "partial_rotary_factor": 0.25, "factor": 0, "head_dim": None}
    ),
    "hunyuan-dense-linear": hunyuan_case("hunyuan-linear", {"rope_scaling": LINEAR}),
    "hunyuan-dense-yarn": hunyuan_case("hunyuan-yarn", {"rope_scaling": YARN, "tie_word_embeddings": True}),
    "baichuan-linear": baichuan_case("baichuan-linear", {"rope_scaling": LINEAR}),
    "orion": orion_case("Orion-14B-Chat", {"max_sequence_length": 4096, "num_key_value_heads": 4}),
    "orion-sparse-config": orion_case("Orion-14B-Base", {"num_key_value_heads": None, "rope_theta": None}),
    "ernie4_5-own-names": renamed(ernie_case("ERNIE-own", {}), {"model.": "ernie."}),
    "gpt-oss-sparse-config": gpt_oss_case("gpt-oss-sparse", {"rope_scaling": None, "rope_theta": None}),
    "lfm2-untied": merged(
        lfm2_case("LFM2-untied", {"layer_types": ["conv", "full_attention"], "tie_word_embeddings": False}, {1}, inner=256),
        {"lm_head.weight": ["BF16", [512, 64]]},
    ),
}  # fmt: skip
