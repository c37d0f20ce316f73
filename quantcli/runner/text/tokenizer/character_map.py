"""SentencePiece's precompiled character map (precompiled_charsmap), which normalizes a text before tokenization.

It is a trie over bytes, an XOR-compressed double array (Kanda, "Space- and Time-Efficient String Dictionaries", 2018),
followed by the replacements as null-terminated strings. Source: `llm_tokenizer_ugm_session` of llama.cpp's
`llama-vocab.cpp`, after SentencePiece's `normalizer.cc`.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final

from quantcli.core.errors import ModelError

CACHED_PAIRS: Final = 1 << 15

_LABEL: Final = 1 << 31 | 0xFF
_VALUE: Final = (1 << 31) - 1
_LEAF: Final = 1 << 8
_WIDE: Final = 1 << 9
"""Set where the offset of a node is in units of 256."""

_LONGEST_REPLACEMENT: Final = 1024
"""Bytes of the longest replacement that is accepted. The longest of NFKC has 33."""


class CharacterMap:
    """Longest-prefix lookup in the map.

    Raises:
        ModelError: if the map is truncated, or a node's offset is out of range.
    """

    def __init__(self, data: bytes) -> None:
        size = int.from_bytes(data[:4], "little") if len(data) >= 4 else len(data)
        if size % 4 or 4 + size >= len(data) or not size:
            raise ModelError(f"the precompiled character map of {len(data)} bytes is damaged: its trie has {size} bytes")
        self._nodes: tuple[int, ...] = struct.unpack_from(f"<{size // 4}I", data, 4)
        self._replacements = data[4 + size :]
        # Almost every lookup depends on two characters at most.
        self._of_pair = lru_cache(CACHED_PAIRS)(self._walk)

    def longest(self, text: str, start: int) -> tuple[int, str] | None:
        """The length of the longest key in `text` at `start`, and its replacement; None where there is none."""
        width = 2
        length, replacement, beyond = self._of_pair(text[start : start + width])
        while beyond and start + width < len(text):
            width *= 2
            length, replacement, beyond = self._walk(text[start : start + width])
        return (length, replacement) if length else None

    def _walk(self, text: str) -> tuple[int, str, bool]:
        """As `longest` at the first character, with length 0 for no key.

        The third value is whether the trie has longer keys that begin with all of `text`.
        """
        length, replacement = 0, ""
        node = _offset(self._node(0))
        for index, character in enumerate(text):
            leaf = False
            for byte in character.encode("utf-8", "surrogateescape"):
                node ^= byte
                entry = self._node(node) if byte else 0
                if entry & _LABEL != byte or not byte:
                    return length, replacement, False
                leaf = bool(entry & _LEAF)
                node ^= _offset(entry)
            if leaf:
                length, replacement = index + 1, self._replacement(self._node(node) & _VALUE)
        return length, replacement, True

    def _node(self, index: int) -> int:
        if index >= len(self._nodes):
            raise ModelError("the precompiled character map is damaged: its trie points outside")
        return self._nodes[index]

    def _replacement(self, start: int) -> str:
        end = self._replacements.find(0, start, start + _LONGEST_REPLACEMENT + 1)
        if end < 0:
            raise ModelError("the precompiled character map is damaged: a replacement is out of range")
        return self._replacements[start:end].decode("utf-8", "replace")


def _offset(entry: int) -> int:
    return (entry >> 10) << ((entry & _WIDE) >> 6)
