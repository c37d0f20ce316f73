"""Byte pair encoding: a text is cut where nothing merges; of a word, the adjacent pair of the best rank is merged, until no
pair can be.

Source: `llm_tokenizer_spm_session` of llama.cpp's `llama-vocab.cpp`, after SentencePiece's `bpe_model.cc`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from heapq import heapify, heappop, heappush
from typing import Final

_CHUNK: Final = 1 << 12
"""About how many characters of a long text are split at once."""


def chunks(text: str, cut: re.Pattern[str]) -> Iterator[str]:
    """The text in pieces, separated at some of the places where `cut` matches."""
    start = 0
    while start < len(text):
        found = cut.search(text, start + _CHUNK)
        end = found.start() if found else len(text)
        yield text[start:end]
        start = end


def merge(symbols: Iterable[str], rank_of: Callable[[str, str], int | None]) -> list[str]:
    """The parts that `symbols` become, none of which is empty.

    `rank_of` tells the rank of a pair, the best first, or None if it is never merged. Ties go to the leftmost pair.
    """
    parts = list(symbols)
    count = len(parts)
    # A doubly linked list over `parts`; the end of the last part is `count`, the one before the first -1.
    before = list(range(-1, count - 1))
    after = list(range(1, count + 1))

    # Candidate pairs as one number: rank * count + left. A stale pair, one side of which has been merged since, is
    # recognised when it is popped: `ranks` has the current rank of the pair that begins at each part.
    ranks = [*map(rank_of, parts, parts[1:]), None]
    queue = [rank * count + left for left, rank in enumerate(ranks) if rank is not None]
    heapify(queue)

    while queue:
        rank, left = divmod(heappop(queue), count)
        if ranks[left] != rank:
            continue
        right = after[left]
        joined = parts[left] = parts[left] + parts[right]
        parts[right], ranks[right], ranks[left] = "", None, None
        follower = after[left] = after[right]
        if follower < count:
            before[follower] = left
            new = ranks[left] = rank_of(joined, parts[follower])
            if new is not None:
                heappush(queue, new * count + left)
        previous = before[left]
        if previous >= 0:
            new = ranks[previous] = rank_of(parts[previous], joined)
            if new is not None:
                heappush(queue, new * count + previous)
    return [part for part in parts if part]
