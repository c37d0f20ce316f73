"""Cases of encoders: BERT and its like, with and without heads, prefixes and the modules of sentence-transformers."""

from __future__ import annotations

import json

from architecture_cases import Case
from architecture_cases_gpt import linear, norm


def pooling(**settings: object) -> dict[str, str]:
    """The files by which sentence-transformers says how it pools."""
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    settings = {"word_embedding_dimension": 64, **settings}
    return {
        "modules.json": json.dumps(modules),
        "1_Pooling/config.json": json.dumps(settings),
        "sentence_bert_config.json": json.dumps({"max_seq_length": 77, "do_lower_case": False}),
    }


MEAN = pooling(pooling_mode_cls_token=False, pooling_mode_mean_tokens=True, pooling_mode_max_tokens=False)
CLS = pooling(pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
LAST = pooling(pooling_mode_cls_token=False, pooling_mode_mean_tokens=False, pooling_mode_lasttoken=True)
NEW_MEAN = pooling(pooling_mode="mean")


def encoder(
    directory: str, config: Case, changes: Case, top: Case, layer: Case, *, head: Case | None = None,
    prefix: str = "", each: str = "encoder.layer.{}.", layers: int = 2, dtype: str = "BF16", **more: object,
) -> Case:  # fmt: skip
    """A checkpoint of `prefix` before the names of all but its head; a change to None takes a key away."""
    config = {key: value for key, value in {**config, **changes}.items() if value is not None}
    shapes = {prefix + name: shape for name, shape in top.items()} | (head or {})
    for number in range(layers):
        shapes |= {prefix + each.format(number) + name: shape for name, shape in layer.items()}
    tensors = {name: [dtype, shape] for name, shape in sorted(shapes.items())}
    return {"directory": directory, "config": config, "tensors": tensors, **more}


def bert_case(directory: str, changes: Case, rows: int = 40, segments: int = 2, vocab: int = 512, **more: object) -> Case:
    """A BERT; a RoBERTa has the same tensors."""
    config = {
        "architectures": ["BertModel"], "model_type": "bert", "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512, "max_position_embeddings": 40,
        "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0,
    }  # fmt: skip
    top = {
        "embeddings.word_embeddings.weight": [vocab, 64], "embeddings.position_embeddings.weight": [rows, 64],
        "embeddings.token_type_embeddings.weight": [segments, 64], **norm("embeddings.LayerNorm"),
    }  # fmt: skip
    layer = {
        **linear("attention.self.query", 64, 64), **linear("attention.self.key", 64, 64),
        **linear("attention.self.value", 64, 64), **linear("attention.output.dense", 64, 64),
        **norm("attention.output.LayerNorm"), **linear("intermediate.dense", 96, 64), **linear("output.dense", 64, 96),
        **norm("output.LayerNorm"),
    }  # fmt: skip
    return encoder(directory, config, changes, top, layer, **more)


def old_norms(case: Case) -> Case:
    """The case with the names that TensorFlow gave the weights of norms."""
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = {}
    for name, kind in case["tensors"].items():
        old = next((old for old in names if name.endswith(old)), "")
        tensors[name.removesuffix(old) + names.get(old, "")] = kind
    return case | {"tensors": dict(sorted(tensors.items()))}


POOLER = linear("pooler.dense", 64, 64)
GUESSING = {
    "cls.predictions.bias": [512], **linear("cls.predictions.transform.dense", 64, 64),
    **norm("cls.predictions.transform.LayerNorm"), **linear("cls.predictions.decoder", 512, 64),
    **linear("cls.seq_relationship", 2, 64),
}  # fmt: skip


def roberta_case(directory: str, changes: Case, kind: str = "roberta", **more: object) -> Case:
    """A RoBERTa or XLM-RoBERTa: two more rows of positions than positions."""
    name = {"roberta": "Roberta", "xlm-roberta": "XLMRoberta"}[kind]
    changes = {
        "architectures": [f"{name}Model"], "model_type": kind, "pad_token_id": 1, "layer_norm_eps": 1e-5,
        "type_vocab_size": 1, "max_position_embeddings": 42, **changes,
    }  # fmt: skip
    return bert_case(directory, changes, **{"rows": 42, "segments": 1, **more})


def head_with_two_layers(labels: int) -> Case:
    """The head of RoBERTa's classifiers."""
    return {**linear("classifier.dense", 64, 64), **linear("classifier.out_proj", labels, 64)}


def distilbert_case(directory: str, changes: Case, **more: object) -> Case:
    """A DistilBERT."""
    config = {
        "architectures": ["DistilBertModel"], "model_type": "distilbert", "dim": 64, "hidden_dim": 96, "n_layers": 2,
        "n_heads": 4, "vocab_size": 512, "max_position_embeddings": 40, "pad_token_id": 0,
    }  # fmt: skip
    top = {
        "embeddings.word_embeddings.weight": [512, 64], "embeddings.position_embeddings.weight": [40, 64],
        **norm("embeddings.LayerNorm"),
    }  # fmt: skip
    layer = {
        **linear("attention.q_lin", 64, 64), **linear("attention.k_lin", 64, 64), **linear("attention.v_lin", 64, 64),
        **linear("attention.out_lin", 64, 64), **norm("sa_layer_norm"), **linear("ffn.lin1", 96, 64),
        **linear("ffn.lin2", 64, 96), **norm("output_layer_norm"),
    }  # fmt: skip
    return encoder(directory, config, changes, top, layer, each="transformer.layer.{}.", **more)


def labels(*names: str) -> Case:
    """A configuration's labels, by their numbers as texts, as JSON has them; not in order."""
    numbered = {str(number): name for number, name in enumerate(names)}
    return {"id2label": dict(sorted(numbered.items())), "label2id": {name: int(n) for n, name in numbered.items()}}


CASES: dict[str, Case] = {
    "bert": bert_case("bge-small-en-v1.5", labels("LABEL_0"), head=POOLER, files=CLS),
    "bert-plain": bert_case("bert-plain", {"num_attention_heads": 1}, dtype="F16"),
    "bert-masked-lm": old_norms(
        bert_case(
            "bert-base-uncased", {"architectures": ["BertForMaskedLM"]}, prefix="bert.",
            head=GUESSING | {f"bert.{name}": shape for name, shape in POOLER.items()} | {"bert.embeddings.position_ids": [1, 40]},
        )
    ),
    "bert-classifier": bert_case(
        "bert-classifier",
        {"architectures": ["BertForSequenceClassification"], "num_attention_heads": 2,
         **labels(*(f"kind {number}" for number in range(11)))},
        prefix="bert.", head=linear("classifier", 11, 64),
    ),
    "bert-classifier-without-labels": bert_case(
        "bert-2", {"architectures": ["BertForSequenceClassification"], **labels("LABEL_0", "LABEL_1")}, prefix="bert.",
        head=linear("classifier", 2, 64),
    ),
    "bert-reranker": bert_case(
        "ms-marco-MiniLM-L6-v2", {"architectures": ["BertForSequenceClassification"], **labels("LABEL_0")}, prefix="bert.",
        head=linear("classifier", 1, 64), files=MEAN,
    ),
    "bert-sparse-config": bert_case(
        "all-MiniLM-L6-v2",
        {"num_attention_heads": 8, "max_position_embeddings": None, "type_vocab_size": None, "layer_norm_eps": None,
         "vocab_size": None, "pad_token_id": None},
        rows=512, vocab=30522, files=NEW_MEAN, dtype="F16",
    ),
    "camembert": bert_case(
        "sentence-camembert-base",
        {"architectures": ["CamembertModel"], "model_type": "camembert", "pad_token_id": 1, "type_vocab_size": 1},
        segments=1, files=MEAN,
    ),
    "roberta": roberta_case("stsb-roberta-base", {}, head={**POOLER, "embeddings.position_ids": [1, 42]}, files=MEAN),
    "roberta-classifier": roberta_case(
        "roberta-sentiment", {"architectures": ["RobertaForSequenceClassification"], **labels("bad", "so-so", "good")},
        prefix="roberta.", head=head_with_two_layers(3), dtype="F16",
    ),
    "roberta-two-labels": roberta_case(
        "roberta-2", {"architectures": ["RobertaForSequenceClassification"]}, prefix="roberta.", head=head_with_two_layers(2)
    ),
    "roberta-sparse-config": roberta_case(
        "roberta", {"pad_token_id": None, "max_position_embeddings": None, "type_vocab_size": None, "layer_norm_eps": None},
        rows=512, segments=2,
    ),
    "xlm-roberta": roberta_case("bge-m3", {}, kind="xlm-roberta", files=CLS, head=POOLER),
    "xlm-roberta-reranker": roberta_case(
        "bge-reranker-v2-m3", {"architectures": ["XLMRobertaForSequenceClassification"], **labels("LABEL_0")},
        kind="xlm-roberta", prefix="roberta.", head=head_with_two_layers(1), dtype="F32",
    ),
    "xlm-roberta-padding": roberta_case(
        "e5", {"pad_token_id": 3, "max_position_embeddings": 44, "position_embedding_type": "absolute"}, rows=44,
        kind="xlm-roberta", files=LAST,
    ),
    "distilbert": distilbert_case("distilbert", {"activation": "gelu"}),
    "distilbert-masked-lm": distilbert_case(
        "distilbert-base-uncased", {"architectures": ["DistilBertForMaskedLM"], "n_heads": 2}, prefix="distilbert.",
        head={**linear("vocab_transform", 64, 64), **norm("vocab_layer_norm"), **linear("vocab_projector", 512, 64)},
        dtype="F32",
    ),
    "distilbert-classifier": distilbert_case(
        "distilbert-sst-2", {"architectures": ["DistilBertForSequenceClassification"], **labels("NEGATIVE", "POSITIVE")},
        prefix="distilbert.", head={**linear("pre_classifier", 64, 64), **linear("classifier", 2, 64)}, files=CLS,
    ),
}  # fmt: skip
