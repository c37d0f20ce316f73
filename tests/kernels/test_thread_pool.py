"""Parallel loops: every index once, whatever the counts, the threads, and who else launches."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantcli.kernels.jit import inline, kernel
from quantcli.kernels.threads import contention, parallel_kernel, system, thread_count, use_threads
from quantcli.kernels.threads import pool as pools
from quantcli.kernels.threads.loops import parallel_for
from quantcli.kernels.threads.pool import ThreadPool


@inline
def _mark(index: Any, out: Any, pair: Any) -> None:
    out[index] += pair[0] + pair[1][index]


@kernel
def marked(pool: Any, out: Any, pair: Any) -> None:
    parallel_for(pool, out.size, _mark, (out, pair))


@inline
def _mark_row(index: Any, pool: Any, out: Any, pair: Any) -> None:
    parallel_for(pool, out.shape[1], _mark, (out[index], pair))


@kernel
def marked_rows(pool: Any, out: Any, pair: Any) -> None:
    parallel_for(pool, out.shape[0], _mark_row, (pool, out, pair))


@inline
def _reserve(index: Any, sizes: Any, out: Any) -> None:
    out[index] = np.zeros(sizes[index], np.uint8).size


@kernel
def reserved(pool: Any, sizes: Any, out: Any) -> None:
    parallel_for(pool, sizes.size, _reserve, (sizes, out))


@kernel
def switches_of(function: Any) -> Any:
    return system.involuntary_switches(function)


@kernel
def time_of(function: Any) -> Any:
    return system.nanoseconds(function)


@parallel_kernel
def doubled(pool: Any, x: Any, out: Any) -> None:
    parallel_for(pool, x.size, _double, (x, out))


@inline
def _double(index: Any, x: Any, out: Any) -> None:
    out[index] = 2 * x[index]


@pytest.fixture(params=[1, 2, 3, 8])
def pool(request: pytest.FixtureRequest) -> Any:
    pool = ThreadPool(request.param)
    yield pool
    pool.stop()
    assert not any(thread.name == "quantcli-worker" and thread in pool.workers for thread in threading.enumerate())


def test_every_index_is_called_once(pool: ThreadPool) -> None:
    """Jobs of many sizes right after one another: a worker that is late for a job must not take part in the next by
    mistake."""
    random = np.random.default_rng(0)
    addends = np.arange(200_001, dtype=np.int64)
    for count in (*range(20), *random.integers(0, 40, 20_000), 3000, 65_535, 65_536, 200_001):
        out = np.zeros(count, np.int64)
        marked(pool.address, out, (7, addends))
        np.testing.assert_array_equal(out, 7 + addends[:count])


def test_without_a_pool(pool: ThreadPool) -> None:
    out = np.zeros(100, np.int64)
    marked(0, out, (1, out.copy()))
    assert (out == 1).all()


def test_a_loop_within_a_loop_runs_alone(pool: ThreadPool) -> None:
    out = np.zeros((40, 50), np.int64)
    marked_rows(pool.address, out, (3, np.arange(50)))
    np.testing.assert_array_equal(out, np.tile(3 + np.arange(50), (40, 1)))


def test_several_threads_launch_at_once(pool: ThreadPool) -> None:
    failures: list[int] = []

    def launch(seed: int) -> None:
        addends = np.arange(500, dtype=np.int64) * seed
        for count in np.random.default_rng(seed).integers(1, 500, 2000):
            out = np.zeros(count, np.int64)
            marked(pool.address, out, (seed, addends))
            if not np.array_equal(out, seed + addends[:count]):
                failures.append(count)

    threads = [threading.Thread(target=launch, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_threads_leave_and_come_back_between_jobs(pool: ThreadPool) -> None:
    """As under contention: before each job some threads leave, and after it one comes back, since jobs count as long."""
    words = pool.words
    words[pools._BEGUN // 8] = 1 << 62  # a window that does not end
    for count in np.random.default_rng(0).integers(2, 200, 5000):
        words[pools._ACTIVE // 8] = active = int(count) % pool.threads + 1
        out = np.zeros(count, np.int64)
        marked(pool.address, out, (7, np.arange(count)))
        np.testing.assert_array_equal(out, 7 + np.arange(count))
        assert words[pools._ACTIVE // 8] == min(active + 1, pool.threads)


MILLISECOND = 1_000_000


def test_contention_takes_a_thread_away_and_for_longer_each_time() -> None:
    adapted = contention.adapted.py_func
    active, pause, changed, now, pauses = 8, contention.SHORTEST_PAUSE, 0, 10**12, []
    for _ in range(10):
        active, pause, changed = adapted(active, 8, pause, changed, now, True, True)
        assert (active, changed) == (7, now)
        pauses.append(pause)
        assert adapted(active, 8, pause, changed, now + pause, False, True) == (7, pause, now)
        now += pause + 1
        active, pause, changed = adapted(active, 8, pause, changed, now, False, True)
        assert (active, changed) == (8, now)
        now += MILLISECOND
    assert pauses == [20 * MILLISECOND << min(step, 6) for step in range(10)]


def test_contention_long_ago_does_not_count() -> None:
    state = contention.adapted.py_func(4, 4, contention.LONGEST_PAUSE, 0, contention.LONGEST_PAUSE + 1, True, True)
    assert state[:2] == (3, contention.SHORTEST_PAUSE)


def test_every_sign_of_contention_takes_a_thread_but_the_last() -> None:
    active, pause, changed = 3, contention.SHORTEST_PAUSE, 0
    for now in (1, 2, 3, 4):
        active, pause, changed = contention.adapted.py_func(active, 3, pause, changed, now, True, True)
    assert active == 1


def test_all_threads_take_part_in_long_jobs() -> None:
    assert contention.adapted.py_func(4, 4, 10, 0, 5, True, False)[0] == 4
    assert contention.adapted.py_func(1, 4, 10, 0, 5, False, False)[0] == 2
    assert contention.are_short.py_func(100, contention.WINDOW)
    assert not contention.are_short.py_func(10, contention.WINDOW)
    assert not contention.are_short.py_func(10_000, 100 * contention.WINDOW)


def test_signs_of_contention() -> None:
    assert contention.is_late.py_func(3 * MILLISECOND)
    assert not contention.is_late.py_func(MILLISECOND // 10)
    assert contention.is_crowded.py_func(6, contention.WINDOW)
    assert not contention.is_crowded.py_func(2, contention.WINDOW)
    assert not contention.is_crowded.py_func(3, 2 * contention.WINDOW)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the context switches of a thread")
def test_involuntary_switches_are_the_systems_own() -> None:
    import resource

    calls = system.system_calls()
    assert calls is not None
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
    found = switches_of(calls.usage)
    assert before <= found <= resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def test_the_clock_is_the_systems_own() -> None:
    calls = system.system_calls()
    assert calls is not None
    before = time.monotonic_ns()
    found = time_of(calls.clock)
    assert before <= found <= time.monotonic_ns()


def test_a_task_out_of_memory_fails_the_kernel_and_not_the_pool(pool: ThreadPool) -> None:
    sizes, out = np.full(20, 8, np.int64), np.zeros(20, np.int64)
    for place in (0, 7, 19):
        wrong = sizes.copy()
        wrong[place] = 1 << 60
        with pytest.raises(MemoryError):
            reserved(pool.address, wrong, out)
        reserved(pool.address, sizes, out)
        assert (out == 8).all()


def test_the_thread_count_is_the_calling_threads_own() -> None:
    before = thread_count()
    counts: list[int] = []

    def other() -> None:
        use_threads(1)
        counts.append(thread_count())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert counts == [1]
    assert thread_count() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
def test_a_forked_child_has_threads_of_its_own() -> None:
    program = """
import os, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from test_thread_pool import doubled
x, out = np.arange(1000.0), np.zeros(1000)
doubled(x, out)
child = os.fork()
out[:] = 0
doubled(x, out)
ok = bool((out == 2 * x).all())
if not child:
    os._exit(0 if ok else 1)
sys.exit(0 if ok and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 else 1)
"""
    here = Path(__file__).parent
    subprocess.run([sys.executable, "-W", "ignore", "-c", program, here], check=True, timeout=120)
