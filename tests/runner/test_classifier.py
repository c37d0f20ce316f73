"""Classifiers and rerankers: their scores against llama.cpp's of the same tiny files, and against transformers."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from changed_file import write_changed
from tiny_encoder import write_encoder
from tiny_model import PROMPT, write_converted, write_model

from quantcli.core.errors import ModelError
from quantcli.formats.checkpoint.checkpoint import open_checkpoint
from quantcli.formats.gguf.spec import Field, ValueType, boolean, string, u32
from quantcli.runner.cache import Cache
from quantcli.runner.load import load_model
from quantcli.runner.text.tokenizer import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = runpy.run_path(str(GOLDEN / "embedding_cases.py"))["CLASSIFIERS"]


def scores(model):
    return model.classifier(model.hidden(PROMPT.tolist(), Cache(model.sizes, len(PROMPT), "f32")))


@pytest.mark.parametrize("name", CASES)
def test_scores_are_those_of_the_reference(name, tmp_path):
    model = load_model(write_model(tmp_path, *CASES[name])).model
    with np.load(GOLDEN / "classifiers.npz") as opened:
        expected = opened[name]
    found = scores(model)
    assert model.classifier.labels == len(found)
    assert found.shape == expected.shape
    # As for embeddings: activations are rounded for packed types, and GELU is looked up in a table of halves.
    gelu = "gelu" in (model.graph.activation, model.graph.classifier)
    share = 0.02 if CASES[name][3] != "F32" else 2e-3 if gelu else 1e-4
    assert np.abs(found - expected).max() <= share * max(1, np.abs(expected).max())


def test_an_encoder_without_a_head_has_no_scores(tmp_path):
    assert load_model(write_model(tmp_path, "bert", {}, None, "F32")).model.classifier is None


def test_a_head_of_one_layer(tmp_path):
    model = load_model(write_model(tmp_path, "bert-classifier-without-labels", {}, None, "F32")).model
    head = model.classifier
    hidden = model.hidden(PROMPT.tolist(), Cache(model.sizes, len(PROMPT), "f32"))
    weight = head.dense.weights.view(np.float32)
    np.testing.assert_allclose(head(hidden), np.tanh(weight @ hidden[0] + head.dense.bias), rtol=1e-5)
    assert (head.output, head.labels) == (None, 2)
    (tmp_path / "reranker").mkdir()
    model = load_model(write_model(tmp_path / "reranker", "bert-reranker", {}, None, "F32")).model
    weight, bias = model.classifier.output.weights.view(np.float32), model.classifier.output.bias
    hidden = model.hidden(PROMPT.tolist(), Cache(model.sizes, len(PROMPT), "f32"))
    np.testing.assert_allclose(model.classifier(hidden), weight @ hidden[0] + bias, rtol=1e-5)
    assert (model.classifier.dense, model.classifier.labels) == (None, 1)


@pytest.mark.parametrize("kind", ["xlm-roberta", "roberta"])
def test_scores_are_those_of_transformers(kind, tmp_path):
    torch = pytest.importorskip("torch", reason="the models are made by torch")
    transformers = pytest.importorskip("transformers", reason="the models are those of transformers")
    torch.manual_seed(5)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=512, max_position_embeddings=42, type_vocab_size=1, pad_token_id=1, num_labels=1, **sizes
    )
    made = transformers.AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        expected = made(torch.tensor([PROMPT.tolist()])).logits.numpy()[0]
    made.save_pretrained(tmp_path / "checkpoint")
    with open_checkpoint(tmp_path / "checkpoint") as opened:
        write_converted(opened, tmp_path / "model.gguf")
    np.testing.assert_allclose(scores(load_model(tmp_path / "model.gguf").model), expected, rtol=2e-3, atol=2e-3)


def test_a_head_of_another_width_is_refused(tmp_path):
    path = write_model(tmp_path, "xlm-roberta-reranker", {}, None, "F32")
    with pytest.raises(ModelError, match=r"embedding_length|has shape"):
        load_model(write_changed(path, tmp_path / "other.gguf", {"bert.embedding_length": u32(32)}))


def test_a_pair_is_two_texts_with_one_beginning(tmp_path):
    metadata = dict(load_model(write_encoder(tmp_path, "F32")).metadata)
    assert load_tokenizer(metadata).pair([10, 11], [12]) == [2, 10, 11, 3, 12, 3]
    # SEP besides the end of a text, as in XLM-RoBERTa, where both are the same token.
    texts = metadata["tokenizer.ggml.tokens"].elements()
    metadata |= {
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.scores": Field(ValueType.ARRAY, [0.0] * len(texts), ValueType.FLOAT32),
        "tokenizer.ggml.eos_token_id": u32(3),
        "tokenizer.ggml.add_eos_token": boolean(True),
    }
    assert load_tokenizer(metadata).pair([10, 11], [12]) == [2, 10, 11, 3, 12, 3]
    metadata |= {"tokenizer.ggml.add_sep_token": boolean(True)}
    assert load_tokenizer(metadata).pair([10, 11], [12]) == [2, 10, 11, 3, 3, 12, 3]
