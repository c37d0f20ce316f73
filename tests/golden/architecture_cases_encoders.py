"""Cases of encoders: BERT and its like, with and without heads, prefixes and the modules of sentence-transformers."""

from __future__ import annotations

import json

from architecture_cases_gpt import linear, norm
from architecture_shapes import Case


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
NEW_LAST = pooling(pooling_mode="lasttoken")


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


NOMIC = {
    "architectures": ["NomicBertModel"], "model_type": "nomic_bert", "activation_function": "swiglu", "causal": False,
    "layer_norm_epsilon": 1e-12, "max_trained_positions": 2048, "mlp_fc1_bias": False, "mlp_fc2_bias": False, "n_embd": 64,
    "n_head": 4, "n_inner": 96, "n_layer": 2, "n_positions": 8192, "prenorm": False, "qkv_proj_bias": False,
    "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "rotary_emb_scale_base": None,
    "type_vocab_size": 2, "vocab_size": 512,
}  # fmt: skip
NEWER_NAMES = {
    "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96, "num_hidden_layers": 2,
    "max_position_embeddings": 2048,
}  # fmt: skip
"""What transformers 5, which knows the model by these names only, would else fill in with its defaults."""


def nomic_case(directory: str, changes: Case, *, experts: int = 0, layers: int = 2, **more: object) -> Case:
    """A Nomic BERT. Its converter wants to see which kind of vocabulary it has; a null stays in the configuration."""
    bias = experts > 0
    changes = {**dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"), bias), "n_layer": layers, **changes}
    top = {
        "embeddings.word_embeddings.weight": [512, 64], "embeddings.token_type_embeddings.weight": [2, 64],
        **norm("emb_ln"),
    }  # fmt: skip
    layer = {
        **linear("attn.Wqkv", 192, 64, bias), **linear("attn.out_proj", 64, 64, bias), **norm("norm1"), **norm("norm2"),
        **linear("mlp.fc11", 96, 64, bias), **linear("mlp.fc12", 96, 64, bias), **linear("mlp.fc2", 64, 96, bias),
    }  # fmt: skip
    made = encoder(directory, NOMIC, changes, top, layer, each="encoder.layers.{}.", layers=layers, **more)
    if experts:
        tensors = {name.replace("fc11", "fc1"): kind for name, kind in made["tensors"].items() if "fc12" not in name}
        dense = [name for name in tensors if ".mlp." in name and int(name.split(".layers.")[1][0]) % 2]
        tensors = {name: kind for name, kind in tensors.items() if name not in dense}
        for number in range(1, layers, 2):
            place = f"encoder.layers.{number}.mlp."
            tensors[f"{place}router.layer.weight"] = ["BF16", [experts, 64]]
            tensors[f"{place}experts.bias"] = ["BF16", [64]]
            tensors |= {f"{place}experts.mlp.{name}": ["BF16", [experts * 96, 64]] for name in ("w1", "w2")}
        made["tensors"] = dict(sorted(tensors.items()))
    made["config"].setdefault("rotary_emb_scale_base", None)
    made["files"] = {**made.get("files", {}), "tokenizer.json": json.dumps({"model": {"type": "WordPiece"}})}
    return made


def jina_case(directory: str, changes: Case, *, code: bool = False, **more: object) -> Case:
    """A Jina BERT 2, or one for code."""
    changes = {
        "architectures": ["JinaBertForMaskedLM"], "max_position_embeddings": 8192, "position_embedding_type": "alibi",
        "feed_forward_type": "geglu", **changes,
    }  # fmt: skip
    made = bert_case(directory, changes, **more)
    up, down, last = ("up_gated_layer", "down_layer", "layer_norm_2") if code else ("gated_layers", "wo", "mlp.layernorm")
    tensors = {}
    for old, (dtype, shape) in made["tensors"].items():
        if "position_embeddings" in old or old.endswith("intermediate.dense.bias"):
            continue
        name = old.replace("intermediate.dense", f"mlp.{up}")
        if ".attention." not in old:
            name = name.replace(".output.dense", f".mlp.{down}").replace(".output.LayerNorm", f".{last}")
        tensors[name] = [dtype, [192, 64] if up in name else shape]
    if code:
        for layer in range(2):
            for name in ("attention.self.layer_norm_q", "attention.self.layer_norm_k", "layer_norm_1"):
                tensors |= {f"encoder.layer.{layer}.{key}": ["BF16", shape] for key, shape in norm(name).items()}
    return made | {"tensors": dict(sorted(tensors.items()))}


def modern_case(directory: str, changes: Case, *, biases: bool = False, **more: object) -> Case:
    """A ModernBERT; the first layer has no norm in front of its attention."""
    config = {
        "architectures": ["ModernBertModel"], "model_type": "modernbert", "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512, "max_position_embeddings": 256,
        "norm_eps": 1e-5, "layer_norm_eps": 1e-5, "local_attention": 32, "global_attn_every_n_layers": 3,
        "global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "hidden_activation": "gelu",
        "classifier_pooling": "mean",
    }  # fmt: skip
    if biases:
        changes = {**dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias"), True), **changes}
    top = {
        "embeddings.tok_embeddings.weight": [512, 64], **norm("embeddings.norm", bias=biases),
        **norm("final_norm", bias=biases),
    }  # fmt: skip
    layer = {
        **norm("attn_norm", bias=biases), **norm("mlp_norm", bias=biases), **linear("attn.Wqkv", 192, 64, biases),
        **linear("attn.Wo", 64, 64, biases), **linear("mlp.Wi", 192, 64, biases), **linear("mlp.Wo", 64, 96, biases),
    }  # fmt: skip
    made = encoder(directory, config, changes, top, layer, each="layers.{}.", **more)
    tensors = {name: kind for name, kind in made["tensors"].items() if "layers.0.attn_norm" not in name}
    return made | {"tensors": tensors}


def labels(*names: str) -> Case:
    """A configuration's labels, by their numbers as texts, as JSON has them; not in order."""
    numbered = {str(number): name for number, name in enumerate(names)}
    return {"id2label": dict(sorted(numbered.items())), "label2id": {name: int(n) for n, name in numbered.items()}}

HEAD = {"head.dense.weight": [64, 64], "head.norm.weight": [64]}
"""Of ModernBERT's classifiers and guessers of words."""

CASES: dict[str, Case] = {
    "nomic-bert": nomic_case("nomic-embed-text-v1.5", NEWER_NAMES, files=MEAN),
    "nomic-bert-raw-config": nomic_case("nomic", {"model_type": None, "n_head": 2, "n_positions": 2048}, dtype="F16"),
    "nomic-bert-moe": nomic_case(
        "nomic-embed-text-v2-moe",
        {"model_type": None, "moe_every_n_layers": 2, "num_experts": 3, "moe_top_k": 2, "n_positions": 2048,
         "activation_function": "gelu", "rotary_emb_base": 10000, "expert_choice_router": False},
        experts=3, layers=4, files=MEAN,
    ),
    "jina-bert-v2": jina_case("jina-embeddings-v2-base-en", {}, prefix="bert.", files=MEAN, head=GUESSING),
    "jina-bert-v2-code": jina_case(
        "jina-embeddings-v2-base-code", {"architectures": ["JinaBertModel"], "num_attention_heads": 2}, code=True,
        head=POOLER,
    ),
    "modern-bert": modern_case("gte-modernbert-base", {"reference_compile": False}, files=CLS),
    "modern-bert-biases": modern_case(
        "modern-bert", {"norm_eps": 1e-6, "layer_norm_eps": 1e-6, "classifier_pooling": "cls"}, biases=True, dtype="F16"
    ),
    "modern-bert-classifier": modern_case(
        "modern-bert-classifier",
        {"architectures": ["ModernBertForSequenceClassification"], **labels("bad", "so-so", "good"),
         "hidden_activation": "silu"},
        prefix="model.", head=HEAD | linear("classifier", 3, 64),
    ),
    "modern-bert-sparse-config": modern_case(
        "modernbert",
        {"norm_eps": None, "local_attention": None, "global_attn_every_n_layers": None,
         "global_rope_theta": None, "local_rope_theta": None, "hidden_activation": None, "classifier_pooling": None,
         "max_position_embeddings": None, "num_attention_heads": 2},
    ),
    "modern-bert-nested-rope": modern_case(
        "granite-embedding",
        {"global_rope_theta": None, "local_rope_theta": None, "global_attn_every_n_layers": None,
         "layer_types": ["full_attention", "sliding_attention"],
         "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 80000.0},
                             "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0}}},
        files=NEW_MEAN,
    ),
    "bert": bert_case("bge-small-en-v1.5", labels("LABEL_0"), head=POOLER, files=CLS),
    "bert-plain": bert_case("bert-plain", {"num_attention_heads": 1}, dtype="F16"),
    "bert-masked-lm": old_norms(
        bert_case(
            "bert-base-uncased", {"architectures": ["BertForMaskedLM"]}, prefix="bert.",
            head={**GUESSING, **linear("bert.pooler.dense", 64, 64), "bert.embeddings.position_ids": [1, 40]},
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
        "roberta-2", {"architectures": ["RobertaForSequenceClassification"]}, prefix="roberta.",
        head=head_with_two_layers(2),
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
