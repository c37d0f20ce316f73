"""Adapters beside peft and llama.cpp: adapters that peft makes, merged as peft merges them, and as files with which
llama.cpp gives the logits that peft gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantcli.architectures.loader import find_architecture
from quantcli.architectures.transforms import as_float32
from quantcli.conversion.lora.gguf_adapter import convert_adapter
from quantcli.conversion.lora.merge import AdapterRequest, merged
from quantcli.formats.checkpoint.checkpoint import open_checkpoint
from quantcli.formats.gguf.spec import string, u32
from quantcli.formats.gguf.writer import GGUFWriter

TOKENS = [3, 14, 15, 92, 65, 35, 89, 79, 3, 23, 84, 62, 64, 33, 83, 27]
VOCABULARY = 128
SHARE = 5e-4
"""How far logits may be apart, as a share of their range."""

LLAMA = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 32, "tie_word_embeddings": False,
}  # fmt: skip
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", LLAMA, {"target_modules": ALL}),
    "llama-rslora": ("llama", LLAMA, {"target_modules": ["q_proj", "v_proj"], "use_rslora": True, "r": 9}),
    "llama-patterns": (
        "llama", LLAMA,
        {"target_modules": ALL, "rank_pattern": {"1.self_attn.q_proj": 3}, "alpha_pattern": {"v_proj": 20, "up_proj": 1}},
    ),
    "llama-embeddings": ("llama", LLAMA, {"target_modules": ["embed_tokens", "lm_head", "k_proj"]}),
    "qwen2": ("qwen2", LLAMA, {"target_modules": ALL}),
    "gpt2": ("gpt2", GPT, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "phi3": ("phi3", LLAMA, {"target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]}),
}  # fmt: skip

ONLY_MERGED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama-dora": ("llama", LLAMA, {"target_modules": ALL, "use_dora": True}),
    "llama-tied": ("llama", {**LLAMA, "tie_word_embeddings": True}, {"target_modules": ["embed_tokens", "q_proj"]}),
    "qwen2-biases": ("qwen2", LLAMA, {"target_modules": ["q_proj", "v_proj"], "lora_bias": True}),
    "llama-whole": ("llama", LLAMA, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
}  # fmt: skip


def make(place: Path, case: tuple[str, dict[str, Any], dict[str, Any]], dtype: str) -> tuple[Any, Path, Path]:
    """A random model with a random adapter, and the directories that both are saved in."""
    torch = pytest.importorskip("torch", reason="the models are made by torch")
    transformers = pytest.importorskip("transformers", reason="the models are those of transformers")
    peft = pytest.importorskip("peft", reason="the adapters are peft's")
    torch.set_num_threads(1)
    torch.manual_seed(7)
    kind, sizes, lora = case
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    config = transformers.AutoConfig.for_model(kind, vocab_size=VOCABULARY, **ids, **sizes)
    made = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), attn_implementation="eager")
    with torch.no_grad():
        for parameter in made.parameters():  # layers start out too much alike to tell mistakes by
            parameter.add_(0.1 * torch.randn(parameter.shape))
    made.save_pretrained(place / "model")
    options = {"r": 4, "lora_alpha": 6, "init_lora_weights": False, "task_type": "CAUSAL_LM", **lora}
    adapted = peft.get_peft_model(made, peft.LoraConfig(**options)).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                parameter.mul_(0.3)
            elif "modules_to_save" in name or "lora_B.default.bias" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    adapted.save_pretrained(place / "adapter")
    return adapted, place / "model", place / "adapter"


def write_gguf(source: Path, target: Path) -> None:
    """A file without a tokenizer, since tokens are given."""
    with open_checkpoint(source) as checkpoint:
        architecture = find_architecture(checkpoint.config)
        tensors = [as_float32(tensor) for tensor in architecture.tensors(checkpoint.tensors, checkpoint.config)]
        metadata = architecture.early_metadata(checkpoint.config) | architecture.metadata(checkpoint.config, 0)
        metadata |= {"tokenizer.ggml.model": string("none"), f"{architecture.gguf}.vocab_size": u32(VOCABULARY)}
        with GGUFWriter(target, metadata, tensors) as writer:
            for index, tensor in enumerate(tensors):
                writer.write(index, 0, tensor.load().view(np.uint8).reshape(-1))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_gives_the_logits_of_peft(name: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="the reference is not installed")
    adapted, model, adapter = make(tmp_path, CASES[name], "float32")
    import torch

    write_gguf(model, tmp_path / "model.gguf")
    convert_adapter(adapter, "F32", tmp_path / "adapter.gguf", base=model)
    with torch.no_grad():
        expected = adapted(torch.tensor([TOKENS])).logits[0].numpy()
        with adapted.disable_adapter():
            without = adapted(torch.tensor([TOKENS])).logits[0].numpy()
    reference = llama_cpp.Llama(
        str(tmp_path / "model.gguf"), lora_path=str(tmp_path / "adapter.gguf"), n_ctx=32, n_threads=1, logits_all=True,
        verbose=False, type_k=0, type_v=0, flash_attn=False,
    )  # fmt: skip
    reference.eval(TOKENS)
    found = reference.scores[: len(TOKENS), :VOCABULARY]
    reference.close()
    np.testing.assert_allclose(found, expected, rtol=0, atol=SHARE * np.ptp(expected))
    assert np.abs(expected - without).max() > 50 * SHARE * np.ptp(expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", [*CASES, *ONLY_MERGED])
def test_the_merge_is_peft_s(name: str, dtype: str, tmp_path: Path) -> None:
    adapted, model, adapter = make(tmp_path, {**CASES, **ONLY_MERGED}[name], dtype)
    import torch

    expected = adapted.merge_and_unload().state_dict()
    with open_checkpoint(model) as checkpoint:
        changed = 0
        with merged(checkpoint, find_architecture(checkpoint.config), [AdapterRequest(adapter)]) as result:
            for key, tensor in result.tensors.items():
                theirs = expected[key].float().numpy()
                ours = as_float32(tensor).load().reshape(theirs.shape)
                rounding = float(torch.finfo(getattr(torch, dtype)).eps)
                np.testing.assert_allclose(ours, theirs, rtol=4 * rounding, atol=4 * rounding * np.abs(theirs).max())
                exact = ours == theirs
                assert dtype == "float32" or exact.mean() > 0.99, key
                changed += tensor is not checkpoint.tensors.get(key)
        assert changed
