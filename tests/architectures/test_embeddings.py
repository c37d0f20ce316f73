"""Encoders of transformers, converted, have the same embeddings in llama.cpp as in transformers, and T5 the same logits.

So they have in our own runner, but for T5, which it does not know.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_logits import SHARE, TOKENS, VOCABULARY, convert, saved_model

from quantcli.formats.gguf.spec import u32
from quantcli.runner.cache import Cache
from quantcli.runner.load import load_model

BERT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0,
    "max_position_embeddings": 32,
}  # fmt: skip
ROBERTA = {**BERT, "pad_token_id": 1, "max_position_embeddings": 34}
DISTILBERT = {"dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 32}
T5 = {
    "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 3, "relative_attention_num_buckets": 8,
    "decoder_start_token_id": 0, "pad_token_id": 0,
}  # fmt: skip

ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("bert", "AutoModel", BERT),
    "bert-masked-lm": ("bert", "AutoModelForMaskedLM", BERT),
    "roberta": ("roberta", "AutoModel", ROBERTA),
    "xlm-roberta": ("xlm-roberta", "AutoModel", {**ROBERTA, "type_vocab_size": 1}),
    "distilbert": ("distilbert", "AutoModel", DISTILBERT),
    "nomic-bert": ("nomic_bert", "AutoModel", {**BERT, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "modern-bert": ("modernbert", "AutoModel", {**BERT, "num_hidden_layers": 4, "local_attention": 8,
                                                "global_attn_every_n_layers": 3}),
    "modern-bert-masked-lm": ("modernbert", "AutoModelForMaskedLM", BERT),
    "t5encoder": ("t5", "AutoModelForTextEncoding", T5),
    "umt5encoder": ("t5", "AutoModelForTextEncoding", {**T5, "feed_forward_proj": "gated-gelu"}),
}
TRANSLATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("t5", T5),
    "flan-t5": ("t5", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_decoder_layers": 1}),
    "mt5": ("mt5", {**T5, "feed_forward_proj": "gated-gelu"}),
    "umt5": ("umt5", {**T5, "feed_forward_proj": "gated-gelu", "num_layers": 3, "num_decoder_layers": 2}),
}


@pytest.fixture
def llama_cpp():
    return pytest.importorskip("llama_cpp", reason="the reference is not installed")


def opened(llama_cpp, path: Path, **options: Any):
    sizes = {"n_ctx": 32, "n_batch": 32, "n_ubatch": 32, "n_threads": 1}
    return llama_cpp.Llama(str(path), **sizes, verbose=False, type_k=0, type_v=0, flash_attn=False, **options)


@pytest.mark.parametrize("name", ENCODERS)
def test_embeddings_equal_those_of_transformers(name: str, llama_cpp, tmp_path: Path):
    kind, factory, sizes = ENCODERS[name]
    made = saved_model(tmp_path / "model", kind, sizes, factory)
    import torch

    segments = u32(getattr(made.config, "type_vocab_size", 2))
    convert(tmp_path / "model", tmp_path / "model.gguf", {"tokenizer.ggml.token_type_count": segments})
    with torch.no_grad():
        output = made(torch.tensor([TOKENS]), output_hidden_states=True)
    expected = output.get("last_hidden_state", output.hidden_states[-1])[0].numpy()
    reference = opened(llama_cpp, tmp_path / "model.gguf", embedding=True, pooling_type=llama_cpp.LLAMA_POOLING_TYPE_NONE)
    reference._batch.set_batch(TOKENS, 0, True)
    reference._ctx.encode(reference._batch)
    found = np.ctypeslib.as_array(llama_cpp.llama_get_embeddings(reference.ctx), expected.shape).copy()
    reference.close()
    np.testing.assert_allclose(found, expected, rtol=0, atol=SHARE * np.ptp(expected))


@pytest.mark.parametrize("name", [name for name, (kind, _, _) in ENCODERS.items() if kind != "t5"])
def test_our_embeddings_equal_those_of_transformers(name: str, tmp_path: Path):
    kind, factory, sizes = ENCODERS[name]
    made = saved_model(tmp_path / "model", kind, sizes, factory)
    import torch

    convert(tmp_path / "model", tmp_path / "model.gguf")
    with torch.no_grad():
        output = made(torch.tensor([TOKENS]), output_hidden_states=True)
    expected = output.get("last_hidden_state", output.hidden_states[-1])[0].numpy()
    model = load_model(tmp_path / "model.gguf").model
    found = model.hidden(TOKENS, Cache(model.sizes, len(TOKENS), "f32"))
    np.testing.assert_allclose(found, expected, rtol=0, atol=SHARE * np.ptp(expected))


@pytest.mark.parametrize("name", TRANSLATORS)
def test_logits_of_decoders_behind_encoders_equal_those_of_transformers(name: str, llama_cpp, tmp_path: Path):
    kind, sizes = TRANSLATORS[name]
    made = saved_model(tmp_path / "model", kind, sizes, "AutoModelForSeq2SeqLM")
    import torch

    convert(tmp_path / "model", tmp_path / "model.gguf")
    answer = [0, *TOKENS[7:]]
    with torch.no_grad():
        expected = made(torch.tensor([TOKENS]), decoder_input_ids=torch.tensor([answer])).logits[0].numpy()
    reference = opened(llama_cpp, tmp_path / "model.gguf")
    reference._batch.set_batch(TOKENS, 0, True)
    reference._ctx.encode(reference._batch)
    reference._batch.set_batch(answer, 0, True)
    reference._ctx.decode(reference._batch)
    found = np.ctypeslib.as_array(llama_cpp.llama_get_logits(reference.ctx), expected.shape).copy()
    reference.close()
    assert expected.shape[1] == VOCABULARY
    if getattr(made.config, "scale_decoder_outputs", False):  # which llama.cpp does not
        expected = expected * T5["d_model"] ** 0.5
    np.testing.assert_allclose(found, expected, rtol=0, atol=2 * SHARE * np.ptp(expected))
