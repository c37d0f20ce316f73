"""Tiny models for the runner: checkpoints of `architectures/`, changed where a window, a scaling or many layers matter.

Name -> the checkpoint, what its config.json says otherwise, its layers where there are to be more, its matrices' type.
Numbers follow from the tensors' names, so these are the same models everywhere.
"""

from __future__ import annotations

from typing import Any

Case = tuple[str, dict[str, Any], int | None, str]

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def case(checkpoint: str, layers: int | None = None, type: str = "F32", **config: Any) -> Case:
    return checkpoint, config, layers, type


CASES: dict[str, Case] = {
    "arcee": case("arcee-embedding"),
    "baichuan-7b": case("baichuan", 32, num_hidden_layers=32),
    "baichuan-13b": case("baichuan-13b", 40, num_hidden_layers=40),
    "bloom": case("bloom"),
    "bloom-odd": case("bloom-odd"),
    "chatglm": case("chatglm"),
    "cohere2": case("cohere2", 5, num_hidden_layers=5, sliding_window=12),
    "command-r": case("command-r-sparse-config"),
    "deepseek": case("deepseek"),
    "deepseek2": case("deepseek2"),
    "deepseek2-square": case("deepseek2-square"),
    "deepseek3": case("deepseek3"),
    "dots1": case("dots1"),
    "ernie4_5": case("ernie4_5"),
    "exaone": case("exaone"),
    "exaone4": case("exaone4"),
    "exaone4-32b": case("exaone4", 64, num_hidden_layers=64, sliding_window=12, layer_types=None),
    "falcon-mamba": case("falcon-mamba"),
    "falcon": case("falcon"),
    "falcon-one-norm": case("falcon-one-norm"),
    "falcon-old-groups": case("falcon-old-groups"),
    "gemma": case("gemma"),
    "gemma2": case("gemma2", 3, num_hidden_layers=3, sliding_window=12),
    "gemma3": case("gemma3", 7, num_hidden_layers=7, sliding_window=12),
    "glm": case("glm"),
    "glm4": case("glm4"),
    "glm4moe": case("glm4moe"),
    "gpt-oss": case("gpt-oss", 3, num_hidden_layers=3, sliding_window=12, rope_scaling=YARN),
    "gpt2": case("gpt2"),
    "gpt-bigcode": case("gpt-bigcode"),
    "gptneox": case("gptneox"),
    "granite": case("granite"),
    "granite4": case("granite4"),
    "granitehybrid": case("granitehybrid"),
    "granitemoe": case("granitemoe"),
    "granitemoe-shared": case("granitemoe-shared"),
    "hunyuan-dense": case("hunyuan-dense"),
    "internlm2": case("internlm2-groups"),
    "lfm2": case("lfm2"),
    "lfm2moe": case("lfm2moe"),
    "llama": case("llama-gqa"),
    "llama-linear": case("llama-linear"),
    "llama-yarn": case("llama-yarn", rope_scaling=YARN),
    "llama3": case("llama3"),
    "llama4": case("llama4", 5, num_hidden_layers=5),
    "mamba": case("mamba"),
    "mamba2": case("mamba2-groups"),
    "minicpm": case("minicpm"),
    "minicpm-long": case("minicpm-long", max_position_embeddings=2048),
    "minicpm3": case("minicpm3-untied"),
    "ministral3": case("ministral3"),
    "mixtral": case("mixtral-many"),
    "mpt": case("mpt"),
    "mpt-groups": case("mpt-groups"),
    "nemotron": case("nemotron"),
    "olmo": case("olmo"),
    "olmo2": case("olmo2"),
    "olmo3": case("olmo3", sliding_window=12, rope_scaling=YARN),
    "olmoe": case("olmoe"),
    "orion": case("orion"),
    "phi2": case("phi2"),
    "phi3": case("phi3"),
    "phi3-long": case("phi3-long"),
    "qwen2": case("qwen2"),
    "qwen2moe": case("qwen2moe"),
    "qwen2vl": case("qwen2vl"),
    "qwen3": case("qwen3"),
    "qwen3moe": case("qwen3moe"),
    "qwen3vl": case("qwen3vl"),
    "qwen3vlmoe": case("qwen3vlmoe"),
    "seed-oss": case("seed-oss"),
    "smollm3": case("smollm3", 5, num_hidden_layers=5),
    "stablelm": case("stablelm"),
    "starcoder2": case("starcoder2"),
    "llama-q8_0": case("llama-gqa", type="Q8_0"),
    "gemma2-q4_0": case("gemma2", 3, type="Q4_0", num_hidden_layers=3, sliding_window=12),
    "mixtral-q8_0": case("mixtral-many", type="Q8_0"),
    "gpt-oss-mxfp4": case("gpt-oss", 3, type="MXFP4", num_hidden_layers=3, sliding_window=12, rope_scaling=YARN),
    "deepseek3-q8_0": case("deepseek3", type="Q8_0"),
}  # fmt: skip
