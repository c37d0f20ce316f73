"""The process that compiles beside this one: its kernels are as good, and nothing that befalls it does harm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from quantcli.kernels import compilation, second_process
from quantcli.kernels.compilation import trace
from quantcli.kernels.jit import inline, kernel
from quantcli.kernels.kernel_cache import cache_directory, kept_kernels
from quantcli.kernels.second_process import SecondProcess, can_help
from quantcli.kernels.simd import load, splat, store

pytestmark = pytest.mark.skipif(os.name != "posix", reason="there is no second process here")

ROOT = Path(__file__).parents[2]
PATIENCE = 300


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTCLI_CACHE_DIR", str(tmp_path / "cache"))
    cache_directory().mkdir(parents=True)


def adding(constant: int) -> Any:
    """A kernel with what kernels have: helpers and constants in its closure, and vectors, whose lanes are literals."""
    number = np.float32(constant)

    @inline
    def added(x: Any) -> Any:
        return x + number

    @kernel
    def add_to_all(x: Any) -> None:
        for start in range(0, x.size, 8):
            store(x, start, added(load(x, start, 8)) + splat(np.float32(0), 8))

    return add_to_all


def result(function: Any) -> list[float]:
    x = np.zeros(8, np.float32)
    function(x)
    return sorted(set(x.tolist()))


def calls(functions: list[Any]) -> list[compilation.KernelCall]:
    return trace(lambda: [result(function) for function in functions])


def test_it_compiles_what_is_not_taken_here() -> None:
    wanted = calls([adding(constant) for constant in range(3)])
    finished, numbers = Event(), []

    def done(number: int) -> None:
        numbers.append(number)
        if len(numbers) == len(wanted):
            finished.set()

    with SecondProcess([(call.kernel, call.types) for call in wanted], done):
        assert finished.wait(PATIENCE)
    assert sorted(numbers) == [0, 1, 2]
    assert len(kept_kernels()) == 3
    again = [adding(constant) for constant in range(3)]
    assert [result(function) for function in again] == [[0], [1], [2]]
    assert all(function.stats.cache_hits and not function.stats.cache_misses for function in again)


FAULTS = {
    "cannot be started": ["/nonexistent/python"],
    "ends at once": [sys.executable, "-c", ""],
    "takes a kernel and ends": [
        sys.executable, "-c",
        "import os, pickle, sys; left, _ = pickle.load(sys.stdin.buffer); os.read(left, 2); os.close(1)",
    ],
    "says that it has done what it has not": [
        sys.executable, "-c",
        "import os, pickle, sys; left, _ = pickle.load(sys.stdin.buffer); os.write(1, os.read(left, 2))",
    ],
    "takes all": [
        sys.executable, "-c",
        "import os, pickle, sys; left, _ = pickle.load(sys.stdin.buffer)\nwhile os.read(left, 2): pass",
    ],
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_its_faults_cost_only_time(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "can_help", lambda: True)
    monkeypatch.setattr(second_process, "worker_command", lambda entry: FAULTS[fault])
    before = os.dup(0)
    os.close(before)
    functions, reported = [adding(constant) for constant in range(3)], []
    compilation.use_report(lambda count: lambda: reported.append(count))
    compilation.compile_ahead(lambda: [result(function) for function in functions])
    assert reported == [3, 3, 3]
    assert [result(function) for function in functions] == [[0], [1], [2]]
    assert len(kept_kernels()) == 3
    after = os.dup(0)
    os.close(after)
    assert after == before, "descriptors are left open"


def test_what_cannot_be_pickled_is_compiled_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(value: Any) -> bytes:
        raise TypeError("cannot pickle this")

    monkeypatch.setattr(compilation, "can_help", lambda: True)
    monkeypatch.setattr(second_process, "packed", refuse)
    functions = [adding(constant) for constant in range(2)]
    compilation.compile_ahead(lambda: [result(function) for function in functions])
    assert all(function.stats.cache_misses for function in functions)


def test_it_needs_a_processor_and_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    assert can_help()
    monkeypatch.setenv("QUANTCLI_CACHE_DIR", "/dev/null")
    assert not can_help()
    monkeypatch.undo()
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3}, raising=False)
    assert not can_help()


PARENT = """
import sys, time
from quantcli.kernels.products.matmul import matmul
from quantcli.core.block_types import TYPES
from quantcli.kernels.compilation import trace
from quantcli.kernels.second_process import SecondProcess
import numpy as np

def multiply():
    for kind in (TYPES["Q4_K"], TYPES["Q5_K"], TYPES["Q6_K"]):
        matmul(np.zeros((32, kind.block_bytes), np.uint8), kind, np.zeros((8, 256), np.float32))

with SecondProcess([(call.kernel, call.types) for call in trace(multiply)], lambda number: None) as second:
    print(second._process.pid, flush=True)
    time.sleep(1000)
"""


def has_ended(process: int) -> bool:
    """Whether a process that is not ours has ended, also where nobody has asked for its status yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes cannot be looked at")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_it_ends_with_this_process_and_leaves_no_partial_file(number: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert not has_ended(child)
    parent.send_signal(number)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + PATIENCE
    while not has_ended(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert sorted(cache_directory().iterdir()) == kept_kernels()
