"""Lists and counts in messages."""

from __future__ import annotations

from collections.abc import Sequence


def listed(items: Sequence[str], *, most: int = 8, separator: str = ", ") -> str:
    """`a, b and 3 more`: at most `most` items, joined by `separator`."""
    rest = len(items) - most
    return separator.join(items[:most]) + (f" and {rest} more" if rest > 0 else "")


def counted(count: int, noun: str) -> str:
    """`1 chunk`, `1,000 chunks`: a count with its noun, whose plural ends in s."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
