"""A pool of threads for the loops of kernels.

Workers live in compiled code and never take the GIL. One job runs at a time: a function pointer, the address of its
arguments, and a count of tasks. The thread that launches a job takes part in it. Each thread has a contiguous range of the
tasks and takes pieces from its front, by compare-and-swap; one that has finished takes pieces from the back of the others'
ranges (work stealing). So a thread reads weights in order, and one that is preempted holds back a piece and not its whole
range. Pieces from a range that all threads shared cost generation a tenth: prefetching ran into the pieces of others.

A thread that finds nothing to do spins for `SPIN_SECONDS` and then sleeps. Spinning bridges the gaps between the operations
of one token. It must end: a thread that spins beside other processes uses up its time slice, and is then preempted while it
holds a task. With OpenMP's spinning, two threads were slower than one beside one busy process.

Where a thread is preempted in spite of that, fewer threads take part for a while (`contention`).
"""

from __future__ import annotations

import threading
from time import perf_counter
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from quantcli.kernels.jit import inline, kernel
from quantcli.kernels.simd import CACHE_LINE
from quantcli.kernels.threads.atomics import atomic_add, atomic_load, atomic_store, compare_and_swap, pause
from quantcli.kernels.threads.contention import SHORTEST_PAUSE, WINDOW, adapted, are_short, is_crowded, is_late
from quantcli.kernels.threads.system import (
    give_way,
    involuntary_switches,
    nanoseconds,
    sleep_while,
    system_calls,
    wake_all,
)

SPIN_SECONDS: Final = 50e-6
"""How long a thread spins before it sleeps. A token's operations are up to 30 microseconds apart."""

_TURN: Final = 8
"""Jobs after which a worker gives way."""

_PIECES: Final = 8
"""A thread takes one part in so many of what is left of a range."""

# Each word has a cache line of its own.
(
    _JOB,  # the number of the job, odd while it is being written
    _WAKE,  # changes to wake the workers
    _DONE,  # tasks finished
    _SLEEPING,  # workers that sleep or are about to
    _WAITING,  # whether the launching thread sleeps or is about to
    _FUNCTION, _CONTEXT, _COUNT, _GROUP,  # the job: its tasks run in groups of so many
    _BUSY,  # whether a job runs
    _FAILED,  # whether a task of it failed
    _THREADS,
    _ACTIVE,  # threads that take part in jobs; the others sleep until it changes
    _PAUSE, _CHANGED,  # see `contention.adapted`
    _JOBS,  # launched in this window
    _SHORT,  # whether those of the last window were short
    _BEGUN, _SWITCHES,  # when this window began, and the context switches of the launching thread until then
    _SPINS,  # how often to pause before sleeping
    _STOP,  # whether workers are to end
    _WAIT_CALL, _WAKE_CALL, _GIVE_WAY_CALL, _CLOCK, _USAGE,  # addresses of the system's functions
    _RANGES,  # of each thread: the job in the high half, and in 16 bits each the first group that is left and the end
) = (place * CACHE_LINE for place in range(27))  # fmt: skip
_JOB_BITS: Final = np.int64(32)
_FIRST_BITS: Final = np.int64(16)
_GROUP_MASK: Final = np.int64((1 << 16) - 1)
_MOST_GROUPS: Final = (1 << 16) - 1
_JOB_MASK: Final = np.int64((1 << 31) - 2)


@intrinsic  # type: ignore[untyped-decorator]
def _run_tasks(typing: Any, function: Any, context: Any, first: Any, last: Any) -> Any:
    """Call a function that `parallel_for` outlined, by its address. Returns its status."""

    def emit(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(word, [word, word, word])
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])

    return types.int64(types.int64, types.int64, types.int64, types.int64), emit


@inline
def _take_part(pool: Any, job: Any, own: Any) -> None:
    """Run tasks of a job until none is left to take: those of thread `own`, then those of the others."""
    # A late thread may read another job's values here. It takes nothing then: all ranges of its own job are empty.
    function, context, count = atomic_load(pool + _FUNCTION), atomic_load(pool + _CONTEXT), atomic_load(pool + _COUNT)
    threads, group = atomic_load(pool + _ACTIVE), atomic_load(pool + _GROUP)
    for turn in range(threads):
        place = pool + _RANGES + (own + turn) % threads * CACHE_LINE
        while True:
            word = atomic_load(place)
            first, end = (word >> _FIRST_BITS) & _GROUP_MASK, word & _GROUP_MASK
            if word >> _JOB_BITS != job or first >= end:
                break
            piece = max((end - first) // _PIECES, 1)
            if not compare_and_swap(place, word, word - piece if turn else word + (piece << _FIRST_BITS)):
                continue
            first = end - piece if turn else first
            if _run_tasks(function, context, first * group, min((first + piece) * group, count)):
                atomic_store(pool + _FAILED, 1)
            groups = (count + group - 1) // group
            if atomic_add(pool + _DONE, piece) + piece == groups and atomic_load(pool + _WAITING):
                wake_all(atomic_load(pool + _WAKE_CALL), pool + _DONE)


@kernel
def _work(pool: int, own: int) -> None:
    """The life of worker `own`: take part in every job until told to stop."""
    job = jobs = 0
    while True:
        spins = atomic_load(pool + _SPINS)
        while True:
            number, active = atomic_load(pool + _JOB), atomic_load(pool + _ACTIVE)
            if own >= active:
                sleep_while(atomic_load(pool + _WAIT_CALL), pool + _ACTIVE, active)
                continue
            if number != job and number & 1 == 0:
                break
            if spins > 0 or number != job:
                spins -= 1
                pause()
                continue
            # The launching thread writes the number and then reads `_SLEEPING`; here it is the other way round. So either
            # it wakes this thread or this thread sees the new number.
            atomic_add(pool + _SLEEPING, 1)
            seen = atomic_load(pool + _WAKE)
            if atomic_load(pool + _JOB) == job:
                sleep_while(atomic_load(pool + _WAIT_CALL), pool + _WAKE, seen)
            atomic_add(pool + _SLEEPING, -1)
        if atomic_load(pool + _STOP):
            return
        job = number
        _take_part(pool, job, own)
        jobs += 1
        if jobs % _TURN == 0:
            give_way(atomic_load(pool + _GIVE_WAY_CALL))


@inline
def _publish(pool: Any, count: Any, function: Any, context: Any) -> Any:
    """Begin a job and wake the workers. Returns the number of groups of its tasks."""
    job = (atomic_load(pool + _JOB) + 2) & _JOB_MASK
    atomic_store(pool + _JOB, job - 1)
    threads, group = atomic_load(pool + _ACTIVE), (count + _MOST_GROUPS - 1) // _MOST_GROUPS
    groups = (count + group - 1) // group
    atomic_store(pool + _FUNCTION, function)
    atomic_store(pool + _CONTEXT, context)
    atomic_store(pool + _COUNT, count)
    atomic_store(pool + _GROUP, group)
    atomic_store(pool + _DONE, 0)
    atomic_store(pool + _FAILED, 0)
    for thread in range(threads):
        first, end = groups * thread // threads, groups * (thread + 1) // threads
        atomic_store(pool + _RANGES + thread * CACHE_LINE, (job << _JOB_BITS) | (first << _FIRST_BITS) | end)
    atomic_store(pool + _JOB, job)
    if atomic_load(pool + _SLEEPING) > 0:
        atomic_store(pool + _WAKE, job)
        wake_all(atomic_load(pool + _WAKE_CALL), pool + _WAKE)
    return groups


@inline
def _is_crowded(pool: Any, now: Any) -> Any:
    """Count the job. At the end of a window, whether the launching thread was preempted often in it."""
    jobs, elapsed = atomic_load(pool + _JOBS) + 1, now - atomic_load(pool + _BEGUN)
    if elapsed < WINDOW:
        atomic_store(pool + _JOBS, jobs)
        return False
    atomic_store(pool + _BEGUN, now)
    atomic_store(pool + _JOBS, 0)
    atomic_store(pool + _SHORT, are_short(jobs, elapsed))
    usage = atomic_load(pool + _USAGE)
    if usage == 0:
        return False
    switches, before = involuntary_switches(usage), atomic_load(pool + _SWITCHES)
    atomic_store(pool + _SWITCHES, switches)
    return is_crowded(switches - before, elapsed)


@inline
def _adapt(pool: Any, waited: Any, now: Any) -> None:
    """Change the number of active threads as `contention` says, after a job at whose end the launching thread waited for so
    many nanoseconds, and before the pool is free again."""
    contended, short = _is_crowded(pool, now) or is_late(waited), atomic_load(pool + _SHORT) != 0
    active, threads = atomic_load(pool + _ACTIVE), atomic_load(pool + _THREADS)
    state = adapted(active, threads, atomic_load(pool + _PAUSE), atomic_load(pool + _CHANGED), now, contended, short)
    if state[2] == now:
        atomic_store(pool + _PAUSE, state[1])
        atomic_store(pool + _CHANGED, now)
        atomic_store(pool + _ACTIVE, state[0])
        if state[0] > active:
            wake_all(atomic_load(pool + _WAKE_CALL), pool + _ACTIVE)


@inline
def _wait_for(pool: Any, groups: Any) -> None:
    """Return when so many groups of tasks are done."""
    spins = atomic_load(pool + _SPINS)
    while True:
        done = atomic_load(pool + _DONE)
        if done == groups:
            return
        if spins > 0:
            spins -= 1
            pause()
            continue
        atomic_store(pool + _WAITING, 1)
        sleep_while(atomic_load(pool + _WAIT_CALL), pool + _DONE, done)
        atomic_store(pool + _WAITING, 0)


@inline
def launch(pool: Any, count: Any, function: Any, context: Any) -> None:
    """Run `count` tasks on the threads of a pool, or on this one where `pool` is 0, and return when all are done.

    A job launched while another runs, from a task or from another thread, runs in the launching thread alone.

    Raises:
        MemoryError: if a task failed. Running out of memory is the only way a kernel can fail.
    """
    if count <= 0:
        return
    if pool == 0 or count == 1 or atomic_load(pool + _THREADS) == 1 or not compare_and_swap(pool + _BUSY, 0, 1):
        if _run_tasks(function, context, 0, count):
            raise MemoryError("a kernel ran out of memory")
        return
    clock = atomic_load(pool + _CLOCK)
    if atomic_load(pool + _ACTIVE) == 1:
        failed = _run_tasks(function, context, 0, count)
        finished = now = nanoseconds(clock)
    else:
        groups = _publish(pool, count, function, context)
        _take_part(pool, atomic_load(pool + _JOB), 0)
        finished = nanoseconds(clock)
        _wait_for(pool, groups)
        failed, now = atomic_load(pool + _FAILED), nanoseconds(clock)
    _adapt(pool, now - finished, now)
    atomic_store(pool + _BUSY, 0)
    if failed:
        raise MemoryError("a kernel ran out of memory")


@kernel
def _pause_often(times: int) -> None:
    for _ in range(times):
        pause()


@kernel
def _stop(pool: int) -> None:
    atomic_store(pool + _STOP, 1)
    job = (atomic_load(pool + _JOB) + 2) & _JOB_MASK
    atomic_store(pool + _JOB, job)
    atomic_store(pool + _WAKE, job)
    atomic_store(pool + _ACTIVE, atomic_load(pool + _THREADS))
    wake_all(atomic_load(pool + _WAKE_CALL), pool + _WAKE)
    wake_all(atomic_load(pool + _WAKE_CALL), pool + _ACTIVE)


POOL_CALLS: Final = ((_work, (0, 0)), (_pause_often, (0,)))
"""The kernels that starting a pool calls, with arguments of the same types."""


class ThreadPool:
    """`threads` threads, the launching one among them. Where the system has no way to sleep until a word changes there is
    only that one.

    `address` is what compiled code knows the pool by, and `words` what is there, int64. The workers are daemons: a process
    may end while they sleep.
    """

    def __init__(self, threads: int) -> None:
        system = system_calls()
        self.threads = threads if system is not None else 1
        self._memory = np.zeros((_RANGES + (self.threads + 1) * CACHE_LINE) // 8, np.int64)
        start = self._memory.ctypes.data
        self.address = start + (-start) % CACHE_LINE
        self.words = words = self._memory[(self.address - start) // 8 :]
        words[_THREADS // 8] = words[_ACTIVE // 8] = self.threads
        words[_PAUSE // 8] = SHORTEST_PAUSE
        if system is not None and self.threads > 1:
            calls = {_WAIT_CALL: system.wait, _WAKE_CALL: system.wake, _GIVE_WAY_CALL: system.give_way}
            for place, call in {**calls, _CLOCK: system.clock, _USAGE: system.usage}.items():
                words[place // 8] = call
            words[_SPINS // 8] = round(SPIN_SECONDS / _seconds_of_a_pause())
        self.workers = [
            threading.Thread(target=self._work, args=(number,), name="quantcli-worker", daemon=True)
            for number in range(1, self.threads)
        ]
        for worker in self.workers:
            worker.start()

    def _work(self, number: int) -> None:
        # A bound method: the running thread keeps the pool's memory, also while the interpreter shuts down.
        _work(self.address, number)

    def stop(self) -> None:
        """End the workers. No job may run, and none may be launched after it."""
        if self.workers:
            _stop(self.address)
        for worker in self.workers:
            worker.join()


def _seconds_of_a_pause(times: int = 256) -> float:
    """The time of one `pause`, at its least of a few tries: from 10 to 150 cycles by the processor's kind."""
    _pause_often(1)
    tries = []
    for _ in range(8):
        start = perf_counter()
        _pause_often(times)
        tries.append(perf_counter() - start)
    return max(min(tries) / times, 1e-9)
