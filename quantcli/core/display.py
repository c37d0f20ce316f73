"""Strings from files and numbers, for display."""

from __future__ import annotations

from typing import Final

_BINARY_UNITS: Final = ("KiB", "MiB", "GiB", "TiB")
_DECIMAL_UNITS: Final = ("K", "M", "B", "T")


def printable(text: str) -> str:
    """A text made safe for display: control characters and bytes that are not UTF-8 are escaped."""
    if text.isprintable():
        return text
    whole = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in whole)


def binary_size(count: int) -> str:
    """A number of bytes with a binary unit: `4.58 GiB`."""
    return _scaled(count, 1024, ("bytes", *_BINARY_UNITS))


def decimal_count(count: int) -> str:
    """A number of weights with a decimal unit: `8.03 B`."""
    return _scaled(count, 1000, ("", *_DECIMAL_UNITS))


def _scaled(count: int, step: int, units: tuple[str, ...]) -> str:
    value, index = float(count), 0
    # 999.995 would be shown as 1000.00.
    while value >= step - 0.005 and index < len(units) - 1:
        value, index = value / step, index + 1
    return (f"{value:.2f} {units[index]}" if index else f"{count} {units[0]}").rstrip()
