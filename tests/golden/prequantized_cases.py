"""Quantized checkpoints that goldens are made of: tiny models, some of whose layers the methods of the reference keep."""

from __future__ import annotations

import random
from typing import Any

from architecture_cases_mixture_of_experts import gpt_oss_case
from architecture_shapes import Case, llama_case
from tiny_checkpoint import EXPONENTS


def quantized(case: Case, method: Case, more: dict[str, list[Any]]) -> Case:
    """The case with a quantization_config, and some weights of all layers but the last replaced: by `more`, dtype and sizes
    by the ends of their names, where a size may be a formula of the outputs `o` and inputs `i`."""
    config = {**case["config"], "quantization_config": method}
    tensors = dict(case["tensors"])
    for layer in range(config["num_hidden_layers"] - 1):
        for part in PARTS:
            outputs, inputs = tensors.pop(f"model.layers.{layer}.{part}.weight")[1]
            for end, (dtype, *sizes) in more.items():
                shape = [int(eval(str(size), {"o": outputs, "i": inputs})) for size in sizes]
                tensors[f"model.layers.{layer}.{part}.{end}"] = [dtype, shape]
    return {**case, "config": config, "tensors": dict(sorted(tensors.items()))}


PARTS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.down_proj")


def with_act_order(case: Case) -> Case:
    """The case with groups of 32 columns in any order."""
    integers = {}
    for name, (_, shape) in case["tensors"].items():
        if name.endswith(".g_idx"):
            integers[name] = [place // 32 for place in range(shape[0])]
            random.Random(name).shuffle(integers[name])
    return {**case, "integers": integers}


def gptq(bits: int, layout: str) -> Case:
    """A llama, in part in GPTQ."""
    method = {"quant_method": "gptq", "bits": bits, "group_size": 32, "desc_act": True, "checkpoint_format": layout}
    more = {
        "qweight": ["I32", f"i * {bits} // 32", "o"],
        "qzeros": ["I32", "i // 32", f"o * {bits} // 32"],
        "scales": ["F16", "i // 32", "o"],
        "g_idx": ["I32", "i"],
    }
    return with_act_order(quantized(llama_case(f"gptq-{bits}-{layout}", {}), method, more))


def packed(symmetric: bool) -> Case:
    """A llama, in part in compressed-tensors of 4 bits."""
    weights = {"num_bits": 4, "group_size": 32, "strategy": "group", "type": "int", "symmetric": symmetric}
    method = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": weights}},
    }
    more = {
        "weight_packed": ["I32", "o", "i // 8"],
        "weight_scale": ["BF16", "o", "i // 32"],
        "weight_shape": ["I32", 2],
    }
    if not symmetric:
        more["weight_zero_point"] = ["I32", "o // 8", "i // 32"]
    return quantized(llama_case("packed", {}), method, more)


def with_shapes(case: Case) -> Case:
    """The case with each weight_shape telling the shape of the weight that was there."""
    whole = llama_case("", {})["tensors"]
    shapes = {name: whole[name.removesuffix("_shape")][1] for name in case["tensors"] if name.endswith("_shape")}
    return {**case, "integers": shapes}


def fp8(directory: str, method: Case, more: dict[str, list[Any]]) -> Case:
    """A llama, in part in FP8."""
    return quantized(llama_case(directory, {}), method, {"weight": ["F8_E4M3", "o", "i"], **more})


def mxfp4() -> Case:
    """A GPT-OSS as it was published."""
    case = gpt_oss_case("gpt-oss-20b", {"rope_theta": 150000, "quantization_config": {"quant_method": "mxfp4"}})
    tensors = {}
    for name, (dtype, shape) in case["tensors"].items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inputs, outputs = shape
            tensors[f"{name}_blocks"] = ["U8", [experts, outputs, inputs // 32, 16]]
            tensors[f"{name}_scales"] = [EXPONENTS, [experts, outputs, inputs // 32]]
        else:
            tensors[name] = [dtype, shape]
    return {**case, "tensors": dict(sorted(tensors.items()))}


CHANNELS = {"strategy": "channel", "type": "float", "num_bits": 8, "group_size": None}
CASES: dict[str, Case] = {
    "gptq-2": gptq(2, "gptq"),
    "gptq-4": gptq(4, "gptq"),
    "gptq-4-v2": gptq(4, "gptq_v2"),
    "gptq-8": gptq(8, "gptq"),
    "packed-symmetric": with_shapes(packed(True)),
    "packed-zeros": with_shapes(packed(False)),
    "fp8-blocks": fp8(
        "fp8", {"quant_method": "fp8", "weight_block_size": [24, 40]},
        {"weight_scale_inv": ["F32", "-(-o // 24)", "-(-i // 40)"]},
    ),
    "fp8-tensors": fp8("fp8", {"quant_method": "fp8"}, {"weight_scale_inv": ["F32"], "activation_scale": ["F32"]}),
    "fp8-channels": fp8(
        "fp8",
        {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"0": {"weights": CHANNELS}}},
        {"weight_scale": ["BF16", "o", 1]},
    ),
    "modelopt-fp8": fp8("fp8", {"quant_method": "modelopt"}, {"weight_scale": ["F32"], "input_scale": ["F32"]}),
    "mxfp4": mxfp4(),
}  # fmt: skip
