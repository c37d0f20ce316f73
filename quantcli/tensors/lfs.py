"""Git LFS pointers, which are in the place of files until `git lfs pull` has downloaded them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

START: Final = b"version https://git-lfs"
"""The first bytes of a pointer."""

FAULT: Final = "a Git LFS pointer, not the file itself"
HINT: Final = "Run `git lfs pull` in the model's directory, or download it with `hf download`."

_MOST: Final = 1024
"""The most bytes of a pointer, as in Git LFS."""


def is_pointer(path: Path, size: int) -> bool:
    """Whether a file of `size` bytes is a pointer.

    Raises:
        OSError: if it cannot be read.
    """
    if not len(START) <= size <= _MOST:
        return False
    with path.open("rb") as file:
        return file.read(len(START)) == START
