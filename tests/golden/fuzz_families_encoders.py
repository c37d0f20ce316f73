"""Families of encoders, with and without decoders, for `fuzz_architectures.py`."""

from __future__ import annotations

from typing import Any

from architecture_cases_encoders import CLS, LAST, MEAN, NEW_MEAN
from architecture_shapes import Case
from fuzz_families import OMIT, Family, layers_of, times, without

TITLES = [OMIT, {0: "LABEL_0"}, {0: "LABEL_0", 1: "LABEL_1"}, {0: "no", 1: "perhaps", 2: "yes"}]

BERT: Case = {
    "num_hidden_layers": [1, 2, 3], "vocab_size": [64, 100, 257], "num_attention_heads": [1, 2, 3, 4],
    "hidden_size": times("num_attention_heads", [8, 16, 24]), "intermediate_size": [32, 100],
    "max_position_embeddings": [40, 64], "type_vocab_size": [OMIT, 1, 2, 3], "layer_norm_eps": [OMIT, 1e-6],
    "pad_token_id": [0, 1, OMIT], "id2label": TITLES, "is_decoder": [OMIT], "tie_word_embeddings": [OMIT, OMIT, False],
}  # fmt: skip


def encoders(name: str) -> tuple[str, ...]:
    """The classes that the reference knows of an encoder."""
    return (f"{name}Model", f"{name}ForMaskedLM", f"{name}ForSequenceClassification")


def _pooled(choices: Case, kind: str, **more: Any) -> dict[str, Family]:
    """The family without sentence-transformers' files, and with each of these."""
    found = {}
    for name, files in {"": {}, "-cls": CLS, "-mean": MEAN, "-last": LAST, "-new": NEW_MEAN}.items():
        found[f"{kind}{name}"] = Family(choices, kind, files=files, **more)
    return found


def _t5(model: str, *, gated: bool) -> Family:
    kinds = ["gated-gelu"] if gated else [OMIT, "relu", "gated-gelu"]
    return Family(
        {"d_model": [32, 64], "d_kv": [8, 16], "d_ff": [48, 100], "num_layers": [1, 2, 3],
         "num_decoder_layers": [OMIT, 1, 2], "num_heads": [1, 2, 3, 6], "vocab_size": [64, 100],
         "relative_attention_num_buckets": [OMIT, 8],
         "relative_attention_max_distance": [OMIT, 64], "layer_norm_epsilon": [OMIT, 1e-5], "feed_forward_proj": kinds,
         "decoder_start_token_id": [0, 0, 3], "pad_token_id": [0], "tie_word_embeddings": [OMIT, True, False],
         "eos_token_id": [1]}, model, models=("AutoModelForSeq2SeqLM", *(["T5EncoderModel"] if model == "t5" else [])),
    )  # fmt: skip


FAMILIES: dict[str, Family] = {
    **_pooled(BERT, "bert", models=encoders("Bert")),
    **_pooled(BERT, "roberta", models=("RobertaModel", "RobertaForSequenceClassification")),
    **_pooled(BERT, "xlm-roberta", models=("XLMRobertaModel", "XLMRobertaForSequenceClassification")),
    "camembert": Family(BERT, "camembert", models=("CamembertModel",)),
    "distilbert": Family(
        {"n_layers": [1, 2], "n_heads": [1, 2, 4], "dim": times("n_heads", [8, 16]), "hidden_dim": [32, 100],
         "vocab_size": [64, 100], "max_position_embeddings": [40, 64], "pad_token_id": [0, 1, OMIT], "id2label": TITLES,
         "tie_word_embeddings": [OMIT, OMIT, False]}, "distilbert", models=encoders("DistilBert"),
    ),
    **_pooled(
        {**without(BERT, "type_vocab_size", "layer_norm_eps", "is_decoder"), "norm_eps": [OMIT, 1e-6],
         "norm_bias": [OMIT, True, False], "attention_bias": [OMIT, True], "mlp_bias": [OMIT, True],
         "local_attention": [OMIT, 32], "classifier_pooling": [OMIT, "mean", "cls"], "pad_token_id": [0, 3],
         "bos_token_id": [1], "eos_token_id": [2], "cls_token_id": [1], "sep_token_id": [2],
         "hidden_activation": [OMIT, "gelu", "silu"], "layer_types": layers_of("full_attention", "sliding_attention")},
        "modernbert", models=encoders("ModernBert"),
    ),
    "t5": _t5("t5", gated=False),
    "mt5": _t5("mt5", gated=True),
    "umt5": _t5("umt5", gated=True),
}  # fmt: skip
