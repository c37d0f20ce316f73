"""Install quantcli into a virtual environment, and quantize and run the small model beside this file.

    python3 examples/try_it.py

Needs Python 3.11 or newer and an internet connection for pip. It writes only to `.venv` and `examples/output`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"
PROGRAMS = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin")


def install(*extras: str) -> None:
    """Create the virtual environment if it does not exist, and install the project into it, with `extras`."""
    if sys.version_info < (3, 11):  # noqa: UP036 -- this script is what tells people with an older Python
        sys.exit(f"quantcli needs Python 3.11 or newer, this is {sys.version.split()[0]}")
    if not (PROGRAMS / Path(sys.executable).name).exists() and not list(PROGRAMS.glob("python*")):
        print(f"creating a virtual environment in {ENVIRONMENT}", flush=True)
        venv.create(ENVIRONMENT, with_pip=True)
    what = "." + (f"[{','.join(extras)}]" if extras else "")
    print("installing quantcli and its dependencies", flush=True)
    run("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--editable", what)


def run(program: str, *arguments: str) -> None:
    """Run a program of the virtual environment in the project's folder. If it fails, exit with its status."""
    status = subprocess.run([str(PROGRAMS / program), *arguments], cwd=ROOT, check=False).returncode
    if status:
        sys.exit(status)


def show(*arguments: str) -> None:
    """Print a command line as a user would type it, then run it."""
    quoted = " ".join(f'"{word}"' if " " in word else word for word in arguments)
    print(f"\n$ quantize {quoted}", flush=True)
    run("quantize", *arguments)


def main() -> None:
    """Install quantcli, quantize the model, show its metadata, and generate text."""
    install()
    output = "examples/output/storyteller-Q4_K_M.gguf"
    (ROOT / output).parent.mkdir(exist_ok=True)
    show("examples/storyteller", "--type", "Q4_K_M", "-o", output, "--overwrite")
    show("inspect", output)
    show("run", output, "--prompt", "Once upon a time", "-n", "100", "--temp", "0")
    print(f"\nThe command is installed as {PROGRAMS / 'quantize'}.")


if __name__ == "__main__":
    main()
