"""Parallel loops: every index once, whatever the counts, the threads, and who else launches."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantcli.kernels.jit import inline, kernel
from quantcli.kernels.threads import parallel_kernel, thread_count, use_threads
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
