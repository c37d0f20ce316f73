"""A file that is truncated while it is mapped ends a command with one line, not with a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from quantcli.conversion.convert import convert

PROGRAM = """
import os, sys
from pathlib import Path
from quantcli.cli.mapped_files import report_truncation
from quantcli.cli.running import open_model
path = Path(sys.argv[1])
loaded = open_model(path, threads=2)
from quantcli.runner.cache import Cache
if len(sys.argv) > 2:
    report_truncation(Path(sys.argv[2]), path)
model = loaded.model
model.forward([1, 5, 9], Cache(model.sizes, 16))
os.truncate(path, 20000)
sys.stdout.write("before")
sys.stdout.flush()
model.forward([1, 5, 9], Cache(model.sizes, 16))
print("after")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGBUS"), reason="the system has no such signal")
@pytest.mark.parametrize("files", [("model.gguf",), ("model.gguf", "whole.gguf")])
def test_a_truncated_file_is_one_line(golden, tmp_path, files):
    """Of several files, that one is named."""
    path = tmp_path / "model.gguf"
    convert(golden / "stories260K", "F16", path)
    (tmp_path / "whole.gguf").write_bytes(path.read_bytes())
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONFAULTHANDLER"}
    words = [sys.executable, "-c", PROGRAM, *(tmp_path / name for name in files)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120, env=environment)
    assert done.returncode == 1
    assert done.stdout == "before"
    assert done.stderr.splitlines()[-1] == f"error: {path}: the file was truncated while it was read"
    assert "Traceback" not in done.stderr
