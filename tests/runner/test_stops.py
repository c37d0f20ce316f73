"""Stop strings: found however a text is cut, and nothing of them shown."""

from __future__ import annotations

import random

import pytest

from quantcli.core.errors import UsageError
from quantcli.runner.text.stops import StopStrings


def shown(text: str, strings: list[str], seed: int) -> tuple[str, str | None]:
    """What is shown of a text that comes in pieces of any length, and the stop string that ended it."""
    lengths, stops, result, place = random.Random(seed), StopStrings(strings), "", 0
    while place < len(text):
        length = lengths.randint(0, 4)
        result += stops.push(text[place : place + length])
        if stops.found is not None:
            return result, stops.found
        place += length
    return result + stops.finish(), None


@pytest.mark.parametrize("seed", range(50))
def test_a_text_ends_before_the_first_stop_string(seed):
    letters = random.Random(seed)
    text = "".join(letters.choice("ab\n") for _ in range(60))
    for strings in (["aab"], ["\n\n", "bbb"], ["abab", "ba\nb"], ["never"], []):
        places = [(text.index(string), string) for string in strings if string in text]
        expected = (text[: min(places)[0]], min(places)[1]) if places else (text, None)
        found = shown(text, strings, seed)
        assert found[0] == expected[0]
        assert (found[1] is None) == (expected[1] is None)


def test_no_more_is_held_back_than_may_begin_a_stop_string():
    stops = StopStrings(["</end>", "END"])
    assert stops.push("text </e") == "text "
    assert stops.push("nough") == "</enough"
    assert stops.push(" E") == " "
    assert stops.finish() == "E"
    assert stops.finish() == ""


def test_an_empty_stop_string_is_refused():
    with pytest.raises(UsageError, match="stop string is empty"):
        StopStrings(["a", ""])
