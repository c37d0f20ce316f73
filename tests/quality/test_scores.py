"""Scores of rerankers and classifiers compared with a base: against plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_encoder import LONGEST, WORDS, text_of_lines, write_encoder

from quantcli.conversion.convert import convert
from quantcli.core.errors import ModelError
from quantcli.quality.scores import DOCUMENTS, agreement, evaluate_scores, scores
from quantcli.runner.load import load_model

LINES = text_of_lines(14).split("\n")


def encoders(folder, checkpoint):
    return [load_model(write_encoder(folder, kind, checkpoint=checkpoint)) for kind in ("Q8_0", "Q4_0", "F32")]


def plain_rank(values):
    return np.array([(values < value).sum() for value in values], float)


def test_figures_are_those_of_plain_numpy():
    random = np.random.default_rng(4)
    base = random.standard_normal((30, 6)).astype(np.float32)
    found = base + random.standard_normal((30, 6)).astype(np.float32)
    measured = agreement(found, base)
    figures = measured.evaluation()
    changes = np.array([np.sqrt(np.mean((a.astype(float) - b) ** 2)) for a, b in zip(found, base, strict=True)])
    same = np.array([a.argmax() == b.argmax() for a, b in zip(found, base, strict=True)])
    ranks = np.array([np.corrcoef(plain_rank(a), plain_rank(b))[0, 1] for a, b in zip(found, base, strict=True)])
    assert (figures.lines, figures.candidates) == (30, 6)
    assert figures.deviation == pytest.approx(base.astype(float).std())
    for estimate, values in ((figures.rms_change, changes), (figures.same_best, same), (figures.rank_correlation, ranks)):
        assert estimate.value == pytest.approx(values.mean())
        assert estimate.stderr == pytest.approx(np.std(values, ddof=1) / np.sqrt(30))
    other = agreement(base, base)
    difference = measured.difference(other)
    assert difference.rms_change.value == pytest.approx(-changes.mean())
    assert difference.same_best.value == pytest.approx(1 - same.mean())
    assert difference.rank_correlation.value == pytest.approx(1 - ranks.mean())


def test_a_reranker_scores_the_lines_after_each_as_documents(tmp_path):
    good, bad, base = models = encoders(tmp_path, "bert-reranker")
    encode = base.tokenizer.encode
    found = evaluate_scores([good, bad], [("a", LINES)], base=base, context=LONGEST)[0]
    rows = []
    for model in models:
        bare = [encode(line, add_special=False) for line in LINES]
        pairs = [
            [[2, *bare[line], 3, *bare[(line + after) % len(LINES)], 3] for after in range(1, DOCUMENTS + 1)]
            for line in range(len(LINES))
        ]
        rows.append(np.array([[scores(model, pair)[0] for pair in of_line] for of_line in pairs]))
    for measured, row in zip(found.evaluations, rows, strict=False):
        assert measured == agreement(row, rows[-1]).evaluation()
    assert found.evaluations[0].rms_change.value < found.evaluations[1].rms_change.value
    few = evaluate_scores([good], [("a", LINES)], base=base, context=LONGEST, limit=4)[0]
    assert few.evaluations[0].candidates == 3


def test_a_pair_fits_the_context(tmp_path):
    good, _, base = encoders(tmp_path, "bert-reranker")
    lines = [" ".join(WORDS[start : start + 30]) for start in range(4)]
    with pytest.warns(UserWarning, match=f"a: 4 lines too long for {LONGEST} tokens, cut"):
        found = evaluate_scores([good], [("a", lines)], base=base, context=512)[0]
    assert found.evaluations[0].lines == 4


def test_a_classifier_scores_each_line_for_itself(tmp_path):
    good, _, base = encoders(tmp_path, "bert-classifier")
    found = evaluate_scores([good], [("a", LINES)], base=base, context=LONGEST)[0]
    good_rows, base_rows = (
        np.array([scores(model, base.tokenizer.encode(line)) for line in LINES]) for model in (good, base)
    )
    assert found.evaluations == (agreement(good_rows, base_rows).evaluation(),)
    assert found.evaluations[0].candidates == 11


def test_another_head_is_no_base(tmp_path):
    names = ("bert-classifier", "bert-reranker", "bert")
    classifier, reranker, plain = (load_model(write_encoder(tmp_path / name, "F32", checkpoint=name)) for name in names)
    for other, what in ((reranker, "11 labels and 1 labels"), (plain, "11 labels and 0 labels")):
        with pytest.raises(ModelError, match=f"are different models: {what}"):
            evaluate_scores([classifier], [("a", LINES)], base=other, context=LONGEST)
    with pytest.raises(ModelError, match="the file has no classifier"):
        scores(plain, [2, 4, 3])


def test_pairs_and_their_scores_are_those_of_transformers(shared, tmp_path):
    torch = pytest.importorskip("torch", reason="the model is made by torch")
    transformers = pytest.importorskip("transformers", reason="the model is that of transformers")
    torch.manual_seed(6)
    config = transformers.RobertaConfig(
        vocab_size=50265, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=66, type_vocab_size=1, pad_token_id=1, num_labels=1,
    )  # fmt: skip
    made = transformers.RobertaForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    tokenizer = transformers.AutoTokenizer.from_pretrained(shared / "tokenizers" / "roberta-base")
    made.save_pretrained(tmp_path / "checkpoint")
    tokenizer.save_pretrained(tmp_path / "checkpoint")
    convert(tmp_path / "checkpoint", "F32", tmp_path / "model.gguf")
    loaded = load_model(tmp_path / "model.gguf")
    lines = ["How tall is it?", "It is 8,849 metres tall.", "It rains.", "Nobody knows how tall it is."]
    bare = [loaded.tokenizer.encode(line, add_special=False) for line in lines]
    found, expected = [], []
    for line in (1, 2, 3):
        pair = loaded.tokenizer.pair(bare[0], bare[line])
        inputs = tokenizer(lines[0], lines[line], return_tensors="pt")
        assert pair == inputs["input_ids"][0].tolist()
        found.append(scores(loaded, pair)[0])
        with torch.no_grad():
            expected.append(made(**inputs).logits.item())
    np.testing.assert_allclose(found, expected, atol=5e-4)
