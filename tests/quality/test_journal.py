"""Journals of evaluations: what they have is not computed again, and what they are not is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from quantcli.core.errors import FormatError, OutputError
from quantcli.formats.leftovers import HAS_LOCKS
from quantcli.quality.journal import computed, open_journal

SUBJECT = [("a.gguf", "1"), ("text", "2")]


@dataclass
class Numbers:
    first: Any
    second: Any = None


STEPS = [
    [Numbers(np.array([1 / 3, np.inf, -0.0, 5e-324])), Numbers(np.arange(6, dtype=np.int64).reshape(2, 3))],
    [Numbers(np.array([True, False]), np.float32([[0.1]]))],
    [],
    [Numbers(np.zeros((0, 4), np.float32))],
]


def taken(path, *, stop=None, subject=SUBJECT):
    """What the steps give, and which of them were computed; after `stop` of these, an exception."""
    done = []

    def compute(number):
        if len(done) == stop:
            raise KeyboardInterrupt
        done.append(number)
        return STEPS[number]

    with open_journal(path, subject) as steps:
        return [steps(Numbers, lambda number=number: compute(number)) for number in range(len(STEPS))], done


def interrupted(path, stop):
    with pytest.raises(KeyboardInterrupt):
        taken(path, stop=stop)


def bits(found):
    return [
        [[None if array is None else (array.dtype, array.shape, array.tobytes()) for array in (each.first, each.second)]
         for each in step]
        for step in found
    ]  # fmt: skip


@pytest.mark.parametrize("stop", range(len(STEPS)))
def test_what_was_done_is_not_computed_again(tmp_path, stop):
    path = tmp_path / "progress"
    interrupted(path, stop)
    if stop < 3:
        interrupted(path, 1)
        stop += 1
    found, done = taken(path)
    assert bits(found) == bits(STEPS)
    assert done == list(range(stop, len(STEPS)))
    assert not path.exists()
    assert computed(Numbers, lambda: STEPS[0]) == STEPS[0]


def test_a_line_that_a_kill_has_cut_short_is_computed_again(tmp_path):
    path = tmp_path / "progress"
    interrupted(path, 2)
    whole = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    assert len(ends) == 3
    for size in (0, 1, ends[0] - 1, ends[0], ends[0] + 9, ends[1] - 1, ends[1], ends[2] - 1):
        path.write_bytes(whole[:size])
        found, done = taken(path)
        assert bits(found) == bits(STEPS)
        assert done == list(range(max(0, sum(end <= size for end in ends) - 1), len(STEPS)))


@pytest.mark.parametrize(
    ("subject", "names"),
    [
        ([("a.gguf", "1"), ("text", "3")], "text"),
        ([("b.gguf", "1"), ("text", "2")], "b.gguf, a.gguf"),
        ([("text", "2")], "a.gguf"),
        ([("text", "2"), ("a.gguf", "1")], "the order or number of files"),
        ([("a.gguf", "1"), ("a.gguf", "1"), ("text", "2")], "the order or number of files"),
    ],
)
def test_another_evaluation_is_refused_by_name(tmp_path, subject, names):
    path = tmp_path / "progress"
    interrupted(path, 2)
    before = path.read_bytes()
    with pytest.raises(FormatError, match=rf"progress: .* of another evaluation; what differs: {names}$") as caught:
        taken(path, subject=subject)
    assert "--resume" in caught.value.hint
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [b"text without an end", b"text\n", b"[]\n", b'{"of": 1}\n', b"GGUF\x03\0", b'{"evaluation":1,"of":[["a.gguf"]]}\n'],
)
def test_another_file_is_refused_and_stays(tmp_path, content):
    path = tmp_path / "progress"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="this is not the progress of an evaluation"):
        taken(path)
    assert path.read_bytes() == content


def test_another_version_is_refused(tmp_path):
    path = tmp_path / "progress"
    interrupted(path, 1)
    path.write_bytes(path.read_bytes().replace(b'"evaluation":1', b'"evaluation":0'))
    with pytest.raises(FormatError, match="by another version of quantcli"):
        taken(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"[1,[", b"[1,{", "line 2 is damaged"),
        (b"<f8", b"<f4", "line 2 is damaged"),
        (b"<f8", b"|O8", "line 2 is damaged"),
        (b'"first"', b'"third"', "line 2 is damaged"),
        (b"[2,[", b"[3,[", "line 3 is step 3, expected 2"),
        (b"[1,[", b"1\n[1,[", "line 2 is damaged"),
    ],
)
def test_a_damaged_journal_is_refused(tmp_path, old, new, message):
    path = tmp_path / "progress"
    interrupted(path, 2)
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(FormatError, match=message):
        taken(path)


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match=r"none.progress: No such file"):
        taken(tmp_path / "none" / "progress")
    with pytest.raises(OutputError, match="directory"):
        taken(tmp_path)


@pytest.mark.skipif(not HAS_LOCKS, reason="there are no locks")
def test_two_evaluations_do_not_share_a_journal(tmp_path):
    path = tmp_path / "progress"
    with open_journal(path, SUBJECT), pytest.raises(OutputError, match="another evaluation is writing this file"):
        taken(path)
