"""Tiny encoders and classifiers for the runner, as `logit_cases.py` has decoders: a checkpoint of `architectures/`, what
its config.json says otherwise, its layers where there are to be more, its matrices' type."""

from __future__ import annotations

from typing import Any

Case = tuple[str, dict[str, Any], int | None, str]

CASES: dict[str, Case] = {
    "bert": ("bert", {}, None, "F32"),
    "bert-packed": ("bert", {}, None, "Q8_0"),
    "distilbert": ("distilbert", {}, None, "F32"),
    "roberta": ("roberta", {}, None, "F32"),
    "xlm-roberta": ("xlm-roberta", {}, None, "F32"),
    "nomic-bert": ("nomic-bert", {}, None, "F32"),
    "nomic-bert-moe": ("nomic-bert-moe", {}, None, "F32"),
    "jina-bert-v2": ("jina-bert-v2", {}, None, "F32"),
    "modern-bert": ("modern-bert", {"local_attention": 8}, None, "F32"),
    "modern-bert-silu": ("modern-bert", {"local_attention": 8, "hidden_activation": "silu"}, None, "F32"),
    "gemma-embedding": ("gemma-embedding", {"sliding_window": 8, "num_hidden_layers": 7}, 7, "F32"),
}

CLASSIFIERS: dict[str, Case] = {
    "xlm-roberta-reranker": ("xlm-roberta-reranker", {}, None, "F32"),
    "xlm-roberta-reranker-packed": ("xlm-roberta-reranker", {}, None, "Q8_0"),
    "roberta": ("roberta-classifier", {}, None, "F32"),
    "bert": ("bert-classifier", {}, None, "F32"),
    "distilbert": ("distilbert-classifier", {}, None, "F32"),
    "modern-bert-mean": ("modern-bert-classifier", {}, None, "F32"),
    "modern-bert-first": ("modern-bert-classifier", {"classifier_pooling": "cls"}, None, "F32"),
}
