"""People are told when kernels are compiled, and only then."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = """
import numpy as np
from quantcli.cli.compiling import announce_compiling
from quantcli.kernels.rows import first_beyond

announce_compiling()
announce_compiling()
first_beyond(np.zeros(1, np.float32), 1)
"""


def test_compiling_is_said_once_and_not_where_the_disk_has_the_kernel(tmp_path: Path) -> None:
    environment = {**os.environ, "QUANTCLI_CACHE_DIR": str(tmp_path)}
    said = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
        )
        said.append(done.stderr.splitlines())
    assert said == [["compiling kernels for this machine (once) ..."], []]
