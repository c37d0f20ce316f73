"""Embeddings compared with a base: against plain NumPy, and what gives no comparison."""

from __future__ import annotations

import numpy as np
import pytest
from changed_file import write_changed
from tiny_encoder import LONGEST, WORDS, text_of_lines, write_encoder

from quantcli.core.errors import ModelError, QuantcliWarning
from quantcli.formats.gguf.spec import u32
from quantcli.quality.embeddings import agreement, evaluate_embeddings
from quantcli.quality.lines import rank_correlation
from quantcli.runner.embed import embed
from quantcli.runner.load import load_model

LINES = text_of_lines(24).split("\n")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    return {kind: load_model(write_encoder(folder, kind)) for kind in ("F32", "Q8_0", "Q4_0")}


def plain_ranks(values):
    """The mean of the places that a number has in all sorted orders."""
    return np.array([(values < value).sum() + ((values == value).sum() + 1) / 2 for value in values])


def plain_figures(found, base):
    """Cosines, whether the nearest other line is the same, and rank correlations, line by line."""

    def cosine(a, b):
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    found, base = found.astype(np.float64), base.astype(np.float64)
    cosines, same, correlations = [], [], []
    for line in range(len(found)):
        others = [other for other in range(len(found)) if other != line]
        ours = np.array([cosine(found[line], found[other]) for other in others])
        theirs = np.array([cosine(base[line], base[other]) for other in others])
        cosines.append(cosine(found[line], base[line]))
        same.append(np.argmax(ours) == np.argmax(theirs))
        correlations.append(np.corrcoef(plain_ranks(ours), plain_ranks(theirs))[0, 1])
    return np.array(cosines), np.array(same), np.array(correlations)


@pytest.mark.parametrize("at_once", [1, 40, 1 << 20])
def test_figures_are_those_of_plain_numpy(at_once, monkeypatch):
    monkeypatch.setattr("quantcli.quality.embeddings.SIMILARITIES_AT_ONCE", at_once)
    random = np.random.default_rng(3)
    base = random.standard_normal((17, 8)).astype(np.float32)
    found = base + 0.5 * random.standard_normal((17, 8)).astype(np.float32)
    cosines, same, correlations = plain_figures(found, base)
    assert 0 < same.mean() < 1
    scores = agreement(found, base)
    np.testing.assert_allclose(scores.cosines, cosines, rtol=1e-12)
    np.testing.assert_array_equal(scores.same_nearest, same)
    np.testing.assert_allclose(scores.rank_correlations, correlations, rtol=1e-12)
    figures = scores.evaluation()
    assert figures.lines == 17
    for estimate, values in (
        (figures.cosine, cosines), (figures.same_nearest, same), (figures.rank_correlation, correlations),
    ):  # fmt: skip
        assert estimate.value == pytest.approx(values.mean())
        assert estimate.stderr == pytest.approx(np.std(values, ddof=1) / np.sqrt(17))
    assert (figures.p1, figures.p5, figures.min) == pytest.approx((*np.percentile(cosines, (1, 5)), cosines.min()))
    closer = agreement(base + 0.1 * (found - base), base)
    difference = scores.difference(closer)
    paired = closer.cosines - scores.cosines
    assert difference.cosine.value == pytest.approx(paired.mean())
    assert difference.cosine.stderr == pytest.approx(np.std(paired, ddof=1) / np.sqrt(17))
    assert difference.same_nearest.value == pytest.approx(closer.same_nearest.mean() - same.mean())
    assert difference.rank_correlation.value == pytest.approx(closer.rank_correlations.mean() - correlations.mean())


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3], [4, 5, 9], 1),
        ([1, 2, 3], [9, 5, 4], -1),
        # Both ranks of equal numbers are their mean: 1.5, 1.5, 3 against 1, 2, 3.
        ([1, 1, 2], [1, 2, 3], 1.5 / np.sqrt(3)),
        ([1, 1, 1], [2, 2, 2], 1),
        ([1, 1, 1], [1, 2, 3], 0),
    ],
)
def test_ranks_of_equal_numbers(first, second, expected):
    assert rank_correlation(np.array(first, float), np.array(second, float)) == pytest.approx(expected)


def test_models_are_compared_on_the_lines_of_each_text(encoders):
    texts = [("a", LINES), ("b", LINES[5:13])]
    models, seen = [encoders["Q8_0"], encoders["Q4_0"]], []
    found = evaluate_embeddings(
        models, texts, base=encoders["F32"], context=LONGEST, advance=lambda *done: seen.append(done)
    )
    for (_, lines), result in zip(texts, found, strict=True):
        base = np.concatenate([each.rows for each in embed(encoders["F32"], lines, normalize=False)])
        for model, figures in zip(models, result.evaluations, strict=True):
            rows = np.concatenate([each.rows for each in embed(model, lines, normalize=False)])
            cosines, same, correlations = plain_figures(rows, base)
            assert figures.lines == len(lines)
            assert figures.cosine.value == pytest.approx(cosines.mean())
            assert figures.same_nearest.value == pytest.approx(same.mean())
            assert figures.rank_correlation.value == pytest.approx(correlations.mean())
        first, second = result.evaluations
        assert first.cosine.value > second.cosine.value
        assert result.differences[0].cosine.value == pytest.approx(second.cosine.value - first.cosine.value)
    assert seen[-1] == (96, 96)
    same = evaluate_embeddings([encoders["F32"]], texts[:1], base=encoders["F32"], context=LONGEST)[0].evaluations[0]
    assert (same.cosine.value, same.min, same.same_nearest.value, same.rank_correlation.value) == pytest.approx((1,) * 4)
    few = evaluate_embeddings(models, texts, base=encoders["F32"], context=LONGEST, limit=5)
    assert [result.evaluations[0].lines for result in few] == [5, 5]


def test_no_line_is_longer_than_the_model_can_read(encoders):
    with pytest.warns(QuantcliWarning, match=f"a: 1 line too long for {LONGEST} tokens, cut"):
        evaluate_embeddings(
            [encoders["Q8_0"]], [("a", [*LINES[:3], " ".join(WORDS[:60])])], base=encoders["F32"], context=512
        )


def test_another_pooling_or_vocabulary_is_no_base(encoders, tmp_path):
    asked = {"texts": [("a", LINES)], "context": LONGEST}
    other = load_model(write_encoder(tmp_path / "cls", "F32", pooling=2))
    with pytest.raises(ModelError, match=r"are different models: pooling 'mean' and pooling 'cls'"):
        evaluate_embeddings([encoders["Q8_0"]], base=other, **asked)
    other = load_model(write_encoder(tmp_path / "words", "F32", words=WORDS[1:]))
    with pytest.raises(ModelError, match=r"different vocabularies \(token 4 is '▁bab' and '▁bad'\)"):
        evaluate_embeddings([encoders["Q8_0"]], base=other, **asked)
    # Rows of tokens have no neighbours: where nothing is said, or no pooling, it is the mean.
    for number, field in enumerate((None, u32(0))):
        plain = write_changed(encoders["F32"].path, tmp_path / f"{number}.gguf", {"bert.pooling_type": field})
        found = evaluate_embeddings([encoders["F32"]], base=load_model(plain), **asked)[0].evaluations[0]
        assert found.min == pytest.approx(1)
