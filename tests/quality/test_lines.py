"""Lines of a text as what models are compared on."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from tiny_encoder import LONGEST, WORDS, text_of_lines, write_encoder

from quantcli.core.errors import GenerationError, QuantcliWarning
from quantcli.quality.lines import Measure, cut_line, different, rank_correlation, whole_line
from quantcli.runner.load import load_model

LINES = text_of_lines(24).split("\n")
WHOLE = Measure(whole_line, cut_line, lambda *_: pytest.fail("computed"), lambda *_: pytest.fail("compared"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_model(write_encoder(tmp_path_factory.mktemp("lines"), "F32")).tokenizer


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3], [4, 5, 9], 1),
        ([1, 2, 3], [9, 5, 4], -1),
        # The rank of equal numbers is their mean: 1.5, 1.5, 3 against 1, 2, 3.
        ([1, 1, 2], [1, 2, 3], 1.5 / np.sqrt(3)),
        ([1, 1, 1], [2, 2, 2], 1),
        ([1, 1, 1], [1, 2, 3], 0),
    ],
)
def test_ranks_of_equal_numbers(first, second, expected):
    assert rank_correlation(np.array(first, float), np.array(second, float)) == pytest.approx(expected)


def test_lines_that_are_left_out_or_cut(tokenizer):
    long = " ".join(WORDS[:60])
    with pytest.warns(QuantcliWarning, match="a text: 2 lines too long for 12 tokens, cut"):
        found = different(tokenizer, [long, "", "bab", " ", "BAB", "bad", long + " bab", "bag"], WHOLE, 12, None, "a text")
    assert [len(line) for line in found] == [12, 3, 3, 3]
    assert found[0] == [2, *range(4, 14), 3]


def test_the_first_lines_of_a_text(tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = different(tokenizer, LINES, WHOLE, LONGEST, 7, "a text")
    assert found == [tokenizer.encode(line) for line in LINES[:7]]


def test_too_few_lines(tokenizer):
    with pytest.raises(GenerationError, match="a text has 2 different lines, and a comparison needs 3 or more"):
        different(tokenizer, ["bab", "bad", "bab"], WHOLE, LONGEST, None, "a text")
