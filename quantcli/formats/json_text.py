"""Parse JSON of untrusted files: every fault is a `FormatError` of one line."""

from __future__ import annotations

import json
from os import PathLike
from types import MappingProxyType
from typing import Any, Final

from quantcli.core.errors import FormatError

_MOST_ADDED: Final = 96 << 20
"""Bytes that parsed values may take beyond four times the size of the text. A vocabulary of 900,000 tokens stays below."""

_TAKEN: Final = MappingProxyType({b"[": 72, b"{": 240, b",": 72})
"""About how many bytes an empty list, a small object and another value take in Python, by a character of each."""


def parse_object(
    path: str | PathLike[str], text: bytes, what: str, *, offset: int | None = None, unique: bool = True
) -> dict[str, Any]:
    """The JSON object in `text`, which errors call `what` of the file `path`.

    With `unique`, duplicate names in an object are refused. Without, the last one is used, as in most readers.

    Raises:
        FormatError: if it is not UTF-8, not JSON, not an object, or has duplicate names.
    """
    parsed = _parse(path, text, what, offset, _unique if unique else None)
    if not isinstance(parsed, dict):
        raise FormatError(path, f"{what} is a JSON {_KINDS[type(parsed)]}, expected an object", offset=offset)
    return parsed


def parse_objects(path: str | PathLike[str], text: bytes, what: str) -> list[dict[str, Any]]:
    """The array of JSON objects in `text`, which errors call `what` of the file `path`.

    Raises:
        FormatError: if it is not UTF-8, not JSON, or not an array of objects.
    """
    parsed = _parse(path, text, what, None, None)
    if not isinstance(parsed, list) or not all(isinstance(entry, dict) for entry in parsed):
        raise FormatError(path, f"{what} is not a JSON array of objects")
    return parsed


def _parse(path: str | PathLike[str], text: bytes, what: str, offset: int | None, hook: Any) -> Any:
    # Also of characters in strings, which are too few to matter.
    taken = sum(text.count(mark) * size for mark, size in _TAKEN.items())
    if taken > 4 * len(text) + _MOST_ADDED:
        raise FormatError(path, f"{what} has too many values: they would take {taken >> 20} MiB of memory", offset=offset)
    try:
        return json.loads(text.decode("utf-8-sig"), object_pairs_hook=hook)
    except (ValueError, RecursionError) as error:
        raise FormatError(path, f"{what} is not valid JSON: {error}", offset=offset) from None


_KINDS: Final = {list: "array", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} comes twice")
        found[name] = value
    return found
