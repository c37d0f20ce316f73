from __future__ import annotations

import pytest

from quantcli.conversion.metadata.model_id import ModelId, count_parameters, parse_model_id, rounded, title
from quantcli.core.block_types import TYPES
from quantcli.tensors.tensor import TensorInfo

NAMES = [
    "Mistral-7B-Instruct-v0.3", "meta-llama/Llama-3.2-1B-Instruct", "Mixtral-8x7B-v0.1", "TinyLlama-1.1B-Chat-v1.0",
    "bloom-7b1", "bigscience/bloom-7b1-petals", "Qwen3-30B-A3B-Instruct-2507", "Phi-3-mini-4k-instruct", "gemma-2-9b-it",
    "Hermes-2-Pro-Llama-3-8B", "./models/Thing-7B", "../x", "a b c", "llama", "llama-2", "7B", "7B-model", "v2", "-x--y-",
    "SmolLM2-135M", "stable-vicuna-13B-f16", "starcoder2-3b-Q4_K_M", "dolphin-2.9-llama3-8b", "internlm2_5-7b-chat-1m",
    "jina-bert-small-v2", "t5-small-13m", "distil-large-v3", "ORG/Name-1_5B-v1-v2-LoRA", "Nous-Hermes-2-Mixtral-8x7B-DPO",
    "gpt2-xl", "opt-iter5-1.3b", "deepseek-llm-7b-base", "Yi-34B-200K", "falcon-40b-instruct", "x-1T-2k-3m-4b", "a/b/c-7b",
    "Llama-7B-7B", "/lead", "Model-8X22b", "bf16-fp32-Q8_0", "Meta-Llama-3.1-8B-Instruct-128k-v2.1-vision",
]  # fmt: skip


@pytest.mark.parametrize("parameters", [0, 7_000_000_000, 1_100_000_000, 130_000_000])
@pytest.mark.parametrize("name", NAMES)
def test_names_mean_what_the_gguf_package_takes_them_for(name, parameters):
    gguf = pytest.importorskip("gguf", reason="the reference for names")
    found = parse_model_id(name, parameters)
    expected = gguf.Metadata.get_model_id_components(name, parameters)
    assert (
        found.name, found.organization, found.basename, found.finetune, found.version, found.size_label
    ) == expected  # fmt: skip


@pytest.mark.parametrize("name", [*NAMES, "llama-2-7b-hf", "GPT-neox-v1.5a", "many-words HERE-3d"])
def test_titles_are_those_of_the_gguf_package(name):
    gguf = pytest.importorskip("gguf", reason="the reference for names")
    assert title(name) == gguf.Metadata.id_to_title(name)


def test_a_name_taken_apart():
    assert parse_model_id("meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400) == ModelId(
        name="Llama-3.2-1B-Instruct", organization="meta-llama", basename="Llama-3.2", finetune="Instruct", version=None,
        size_label="1B",
    )  # fmt: skip


def test_a_size_that_is_none_of_the_model_is_part_of_the_finetune():
    assert parse_model_id("Yi-34B-200K", 34_000_000_000).size_label == "34B"
    assert parse_model_id("Yi-34B-200K", 34_000_000_000).finetune == "200k"


@pytest.mark.parametrize("count", [0, 1, 10, 999, 1000, 1001, 259_840, 999_999, 6_580_000, 1.35e8, 1.1e9, 6.74e9, 3e13])
def test_counts_are_rounded_as_the_gguf_package_rounds_them(count):
    utility = pytest.importorskip("gguf.utility", reason="the reference for sizes")
    assert rounded(int(count)) == utility.model_weight_count_rounded_notation(int(count))


def test_experts_count_once_in_the_label():
    tensors = [
        TensorInfo("token_embd.weight", (1000, 1000), TYPES["F32"]),
        TensorInfo("blk.0.ffn_up_exps.weight", (8, 1000, 6000), TYPES["F32"]),
        TensorInfo("blk.0.ffn_up_exps.bias", (8, 6000), TYPES["F32"]),
    ]
    assert count_parameters(tensors) == (49_048_000, "8x7.0M")
    assert count_parameters(tensors[:1]) == (1_000_000, "1000K")
    assert count_parameters([]) == (0, "0.00K")
