"""A command at a terminal of a given width, and what the screen shows in the end."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]


def on_terminal(
    words: Sequence[object], columns: int = 80, variables: Mapping[str, str] | None = None, folder: Path = ROOT
) -> tuple[int, str]:
    """Exit status of the command, and everything that it wrote to a terminal: its stdin, stdout and stderr."""
    import fcntl
    import pty
    import termios

    mine, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-m", "quantcli", *map(str, words)]
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    environment |= {"PYTHONPATH": str(ROOT), "TERM": "dumb"} | dict(variables or {})
    with subprocess.Popen(
        command, stdin=inner, stdout=inner, stderr=inner, env=environment, cwd=folder, start_new_session=True
    ) as process:
        os.close(inner)
        written = b""
        with suppress(OSError):  # nobody has the terminal open any more
            while part := os.read(mine, 65536):
                written += part
    os.close(mine)
    return process.returncode, written.decode()


def screen(written: str, columns: int = 80) -> list[str]:
    """The lines that such a terminal shows. Its escape sequences are styles, which are left out, and `ESC[K`."""
    lines, column = [[" "] * columns], 0
    for part in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|.", written, re.DOTALL):
        if part == "\r":
            column = 0
        elif part == "\n":
            lines.append([" "] * columns)
        elif part == "\x1b[K":
            lines[-1][column:] = [" "] * (columns - column)
        elif len(part) == 1:
            if column == columns:
                lines.append([" "] * columns)
                column = 0
            lines[-1][column] = part
            column += 1
    return ["".join(line).rstrip() for line in lines]
