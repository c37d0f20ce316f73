"""Functions on untrusted data run in a process with limits, and what they say comes back."""

from __future__ import annotations

import os
import pickle
import re
import sys
import time
from pathlib import Path

import pytest

import quantcli
from quantcli.core import errors, isolated
from quantcli.core.errors import FormatError, QuantcliError, UnsupportedError, UsageError, warn

WHAT = "model.json: its steps"


def test_results_warnings_and_errors_come_back() -> None:
    assert isolated.call(divmod, 17, 5, what=WHAT) == (3, 2)
    with pytest.warns(errors.QuantcliWarning, match="^look$"):
        isolated.call(warn, "look", what=WHAT)
    with pytest.raises(ZeroDivisionError):
        isolated.call(divmod, 17, 0, what=WHAT)


@pytest.mark.parametrize(
    "error",
    [
        FormatError("a.gguf", "cut", offset=3, hint="copy it again"),
        UsageError("no", hint="yes"),
        *(kind("what") for kind in QuantcliError.__subclasses__() if kind is not FormatError),
    ],
    ids=repr,
)
def test_our_errors_are_values(error: QuantcliError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), vars(again), str(again)) == (type(error), vars(error), str(error))


def test_a_process_runs_this_package_and_nothing_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (tmp_path, other := tmp_path / "other"):
        (place / "quantcli").mkdir(parents=True)
        (place / "quantcli/__init__.py").write_text("raise SystemExit(9)")
        (place / "fractions.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), str(other), *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert isolated.call(eval, "__import__('quantcli').__file__, __import__('fractions').__name__", what=WHAT) == (
        quantcli.__file__, "fractions",
    )  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="the limits are POSIX's")
def test_time_and_memory_end() -> None:
    with pytest.raises(UnsupportedError, match="its steps do not end within 1 seconds"):
        isolated.call(re.match, "(.+)+z", "a" * 50, what=WHAT, seconds=1)
    with pytest.raises(UnsupportedError, match=r"its steps do not end within 0\.01 seconds"):
        isolated.call(time.sleep, 60, what=WHAT, seconds=0.01)
    with pytest.raises(UnsupportedError, match=r"its steps take more than 2 GiB of memory$"):
        isolated.call(bytes, isolated.MEMORY, what=WHAT)
    with pytest.raises(UnsupportedError, match=r"its steps take more than 2 GiB of memory, or crash \(status -6\)"):
        isolated.call(os.abort, what=WHAT)
