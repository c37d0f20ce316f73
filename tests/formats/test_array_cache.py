"""Arrays that are kept for a while: made once, dropped when there are many, gone with what they were made of."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

from quantcli.tensors.array_cache import ArrayCache, Same


def test_an_array_that_several_threads_want_is_made_once() -> None:
    cache, made, together = ArrayCache(1 << 20), [], Barrier(8)

    def make() -> np.ndarray:
        made.append(1)
        return np.zeros(4)

    def get(_: int) -> np.ndarray:
        together.wait()
        return cache.get(("a", 0), make)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(get, range(8)))
    assert len(made) == 1
    assert all(array is found[0] for array in found)


def test_old_arrays_are_dropped() -> None:
    cache, made = ArrayCache(3000), []

    def get(index: int) -> None:
        cache.get(("a", index), lambda: made.append(index) or np.zeros(125))

    for index in (0, 1, 2, 0, 3, 0, 1):
        get(index)
    assert made == [0, 1, 2, 3, 1]


def test_an_array_that_fails_is_tried_again() -> None:
    cache = ArrayCache(1 << 20)
    with pytest.raises(OSError, match="once"):
        cache.get(("a", 0), lambda: (_ for _ in ()).throw(OSError("once")))
    assert cache.get(("a", 0), lambda: np.ones(1)).tolist() == [1]


def test_making_an_array_may_need_another() -> None:
    cache = ArrayCache(1 << 20)
    outer = cache.get("outer", lambda: 2 * cache.get("inner", lambda: np.ones(2)))
    assert outer.tolist() == [2, 2]
    assert cache.get("inner", lambda: np.zeros(2)).tolist() == [1, 1]


def test_a_cache_in_another_process_is_empty() -> None:
    cache = ArrayCache(1 << 20)
    cache.get("a", lambda: np.ones(1))
    assert pickle.loads(pickle.dumps(cache)).get("a", lambda: np.zeros(1)).tolist() == [0]


class Source:
    """Equal to all others of its kind."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Source)

    __hash__ = None  # type: ignore[assignment]


def test_a_key_of_identity_is_equal_for_the_same_object_alone() -> None:
    first, second = Source(), Source()
    assert Same(first) == Same(first)
    assert hash(Same(first)) == hash(Same(first))
    assert Same(first) != Same(second)


def test_a_key_of_what_is_gone_equals_nothing() -> None:
    first = Source()
    key, other = Same(first), Same(first)
    del first
    assert key != other
    assert key != Same(Source())
