"""How many threads of a pool take part while other processes use the processors: one fewer after each sign of contention,
one more after a while without.

Where more threads are ready to run than there are processors, ours are preempted. Either one holds a piece of a job for a
time slice, some milliseconds, and the others wait for it. Or two of ours share a processor and take turns there for every
job. In both cases one thread fewer loses less. The last active thread takes no part for a while, then it is tried again.
Where it meets contention again, the while doubles, so tries cost nothing that counts.

That holds for short jobs, as those of one token are. Jobs of a prompt take longer than a time slice: all threads take part.
"""

from __future__ import annotations

from typing import Any, Final

from quantcli.kernels.jit import inline

_SHORT: Final = 500_000
"""Nanoseconds. Longer jobs, on the average of a window, lose less to contention than to a missing thread."""

_LATE: Final = 1_000_000
"""Nanoseconds. A wait for the last pieces of a job that is longer than this, where jobs are short, is due to a preempted
thread."""

WINDOW: Final = 10_000_000
"""Nanoseconds between two looks at the involuntary context switches of the launching thread."""

_MOST_SWITCHES: Final = 2
"""Involuntary switches per window that are no sign of contention. Idle machines were seen to have 0.2 and one busy process
beside us to cause 6."""

SHORTEST_PAUSE: Final = 20_000_000
LONGEST_PAUSE: Final = 1_280_000_000
"""Nanoseconds for which a thread takes no part."""


@inline
def are_short(jobs: Any, elapsed: Any) -> Any:
    """Whether jobs are so short that contention counts: so many were launched in so many nanoseconds. A much longer time
    than a window says nothing: the thread may have computed something else."""
    return jobs * _SHORT > elapsed and elapsed < 4 * WINDOW


@inline
def is_late(waited: Any) -> Any:
    """Whether a thread of a short job was preempted: the launching one waited so many nanoseconds for the others."""
    return waited > _LATE


@inline
def is_crowded(switches: Any, elapsed: Any) -> Any:
    """Whether the launching thread was preempted too often in so many nanoseconds, about a window."""
    return switches > _MOST_SWITCHES and switches * WINDOW > _MOST_SWITCHES * elapsed


@inline
def adapted(active: Any, threads: Any, pause: Any, changed: Any, now: Any, contended: Any, short: Any) -> Any:
    """The new (active threads, pause, time of the last change) after a job, from those before it.

    pause    how long the last thread to leave stays out, nanoseconds
    changed  when a thread left or came back, nanoseconds
    """
    if contended and short and active > 1:
        # A thread that came back and met contention within its pause stays out twice as long.
        longer = min(2 * pause, LONGEST_PAUSE) if now - changed < pause else SHORTEST_PAUSE
        return active - 1, longer, now
    if active < threads and (not short or now - changed > pause):
        return active + 1, pause, now
    return active, pause, changed
