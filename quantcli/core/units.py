"""Sizes in bytes, as people write them."""

from __future__ import annotations

import re
from typing import Final

from quantcli.core.errors import UsageError, clipped

_UNITS: Final = {
    "": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip


def parse_bytes(text: str) -> int:
    """A size in bytes: `4.5GiB` in powers of 1024, `4.5GB` or `4.5G` in powers of 1000, or plain bytes.

    Raises:
        UsageError: if it is none.
    """
    parts = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(parts[2].upper()) if parts else None
    count = int(float(parts[1]) * unit) if parts and unit else 0
    if not count:
        raise UsageError(f"{clipped(repr(text))} is not a size", hint="for example: 4.5GiB, 800MB")
    return count
