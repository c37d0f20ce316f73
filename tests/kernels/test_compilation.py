"""When kernels are compiled: what a task will call is known before, and what it costs is in no speed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quantcli.kernels import compilation
from quantcli.kernels.compilation import compile_ahead, expecting, running_seconds, trace, tracing, use_report
from quantcli.kernels.elementwise import add
from quantcli.kernels.jit import kernel
from quantcli.kernels.kernel_cache import kept_kernels


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and no second process."""
    monkeypatch.setenv("QUANTCLI_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(compilation, "can_help", lambda: False)


@pytest.fixture
def reports() -> list[list[str]]:
    """A list for each report: its count, and a mark for each kernel."""
    made: list[list[str]] = []

    def report(count: int) -> Callable[[], None]:
        made.append([str(count)])
        return lambda: made[-1].append("+")

    use_report(report)
    return made


def adding(constant: int) -> Any:
    @kernel
    def added(x: Any) -> Any:
        return x + constant

    return added


def compiled(function: Any) -> int:
    return len(function.signatures)


def test_a_trace_records_calls_and_executes_none() -> None:
    one, two = adding(1), adding(2)
    given = []

    def task() -> None:
        assert tracing()
        given.append(one(5))
        given.append(two(5.0))
        given.append(one(6))

    calls = trace(task)
    assert not tracing()
    assert given == [0, 0, 0]
    assert [(call.kernel, str(call.types[0])) for call in calls] == [(one, "int64"), (two, "float64")]
    assert not compiled(one) and not compiled(two)


def test_a_trace_ends_where_results_would_be_needed() -> None:
    one, two = adding(1), adding(2)

    def task() -> None:
        1 // one(5)
        two(5)

    assert [call.kernel for call in trace(task)] == [one]


def test_a_parallel_kernel_changes_nothing_in_a_trace_also_where_it_is_compiled() -> None:
    x, y = np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)
    add(x, y)
    calls = trace(lambda: add(x, y))
    assert (x == 2).all()
    assert "add" in [call.kernel.py_func.__name__ for call in calls]
    assert all(call.is_compiled() for call in calls)


def test_the_first_missing_kernel_has_the_others_compiled(reports: list[list[str]]) -> None:
    one, two, other = adding(1), adding(2), adding(3)
    with expecting(lambda: (one(5), two(5))):
        assert one(5) == 6
        assert compiled(two)
        assert two(5) == 7
        assert other(5) == 8
    assert reports == [["2", "+", "+"], ["1", "+"]]
    assert len(kept_kernels()) == 3


def test_nothing_is_traced_and_said_where_the_disk_has_the_kernel(reports: list[list[str]]) -> None:
    adding(1)(5)
    reports.clear()
    with expecting(lambda: pytest.fail("a trace")):
        assert adding(1)(5) == 6
    assert reports == []


def test_kernels_are_compiled_ahead_and_then_loaded(reports: list[list[str]]) -> None:
    one = adding(1)
    compile_ahead(lambda: one(5))
    assert compiled(one)
    again = adding(1)
    compile_ahead(lambda: again(5))
    assert compiled(again)
    assert again.stats.cache_hits
    assert reports == [["1", "+"]]


def test_kernels_of_one_factory_have_files_of_their_own() -> None:
    """numba's own cache numbers files, so that two processes gave two kernels the same number."""
    functions = [adding(constant) for constant in range(3)]
    keys = [function._cache._index_key((), function.targetctx.codegen()) for function in functions]
    assert len({function._cache._cache_file.path(key) for function, key in zip(functions, keys, strict=True)}) == 3
    assert [function(10) for function in functions] == [10, 11, 12]
    assert [adding(constant)(10) for constant in range(3)] == [10, 11, 12]
    assert len(kept_kernels()) == 3


def test_the_clock_of_speeds_stands_still_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(compilation, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    before = running_seconds()

    def report(count: int) -> Callable[[], None]:
        now[0] += 30
        return lambda: None

    use_report(report)
    one = adding(1)
    now[0] += 2
    one(5)
    assert now[0] == 132
    assert running_seconds() - before == 2
    adding(2)
    compile_ahead(lambda: one(5.0))
    assert now[0] == 162
    assert running_seconds() - before == 2
