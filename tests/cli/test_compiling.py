"""People are told when kernels are compiled, and only then."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import numpy as np
from quantcli.cli.compiling import announce_compiling
from quantcli.kernels.rows import first_beyond

announce_compiling()
first_beyond(np.zeros(1, np.float32), 1)
"""

TWO_KERNELS = """
import numpy as np
from quantcli.cli.compiling import announce_compiling
from quantcli.core.block_types import TYPES
from quantcli.kernels.rows import compile_kernels

announce_compiling()
compile_kernels({TYPES["F16"]}, set())
"""


TWO_BATCHES = f"""{PROGRAM}
from quantcli.core.block_types import TYPES
from quantcli.kernels.rows import compile_kernels

compile_kernels({{TYPES["F16"]}}, set())
"""


def test_several_batches_are_said_once(tmp_path: Path) -> None:
    environment = {**os.environ, "QUANTCLI_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", TWO_BATCHES], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    assert done.stderr == "compiling kernels for this machine (once) ...\n"


def test_compiling_is_said_once_and_not_where_the_disk_has_the_kernel(tmp_path: Path) -> None:
    environment = {**os.environ, "QUANTCLI_CACHE_DIR": str(tmp_path)}
    said = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
        )
        said.append(done.stderr.splitlines())
    assert said == [["compiling kernels for this machine (once) ..."], []]


def shown_on_a_terminal(program: str, cache: str) -> str:
    """What a program writes to a terminal that is its stderr."""
    pty = pytest.importorskip("pty", reason="there are no such terminals here")
    end, inner = pty.openpty()
    environment = {**os.environ, "QUANTCLI_CACHE_DIR": cache}
    process = subprocess.Popen([sys.executable, "-c", program], stderr=inner, cwd=ROOT, env=environment)
    os.close(inner)
    shown = b""
    try:
        while part := os.read(end, 4096):
            shown += part
    except OSError:  # nobody has the terminal open any more
        pass
    os.close(end)
    assert process.wait() == 0
    return shown.decode()


def lines(shown: str) -> list[str]:
    """The states of the last line, one after the other, and the lines."""
    return [part.rstrip() for part in shown.replace("\n", "\r").split("\r") if part.strip()]


def test_a_terminal_has_a_counter_and_then_the_time(tmp_path: Path) -> None:
    *counter, end = lines(shown_on_a_terminal(TWO_KERNELS, str(tmp_path)))
    assert counter == [f"compiling kernels {done}/2 ... kept for the next time" for done in range(2)]
    assert end.startswith("compiled 2 kernels in ")
    assert end.endswith(" s, kept for the next time")
    assert "\033" not in shown_on_a_terminal(PROGRAM, str(tmp_path / "new"))
    assert shown_on_a_terminal(TWO_KERNELS, str(tmp_path)) == ""


def test_a_terminal_is_told_that_kernels_are_not_kept() -> None:
    first, *_, end = lines(shown_on_a_terminal(PROGRAM, "/dev/null"))
    assert first == "compiling kernels 0/1 ... not kept"
    assert end.startswith("compiled 1 kernel in ")
    assert "they cannot be kept in /dev/null/kernels-" in end
