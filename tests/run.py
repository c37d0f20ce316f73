"""Set quantcli up in a virtual environment of its own and run its tests.

    python3 tests/run.py [arguments for pytest]

Tests that need the reference implementation or another reader of GGUF skip where these are not installed, and say so.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from try_it import install, run

if __name__ == "__main__":
    install("test")
    run("python", "-m", "pytest", *sys.argv[1:])
