"""Removes the compiled kernels of other versions that have not been used for a month."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

PREFIX: Final = "kernels-"

_FOLDER: Final = re.compile(PREFIX + "[0-9a-f]{16}")
_FILE: Final = re.compile(r".+\.nb[ic](?:\.tmp\.\w+)?")
"""Files of compiled code, index files of earlier versions, and what a process that was killed leaves of them."""

UNUSED_SECONDS: Final = 30 * 24 * 3600
"""What has not been used for longer is removed."""


@cache
def mark_used(folder: Path) -> None:
    """Set a cache folder's time, once in a process: the folder is in use."""
    with suppress(OSError):
        os.utime(folder)


@cache
def remove_unused(current: Path) -> None:
    """Remove the folders beside `current` that are caches and have not been used for a month, once in a process.

    Only files of compiled kernels are removed, and folders that are then empty.
    """
    with suppress(OSError):
        for folder in current.parent.iterdir():
            if folder != current and _FOLDER.fullmatch(folder.name) and not folder.is_symlink():
                with suppress(OSError):
                    _remove_if_unused(folder)


def _remove_if_unused(folder: Path) -> None:
    if time.time() - folder.stat().st_mtime <= UNUSED_SECONDS:
        return
    for file in folder.iterdir():
        if _FILE.fullmatch(file.name):
            file.unlink()
    folder.rmdir()
