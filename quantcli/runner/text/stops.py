"""Texts that end an answer, found as it grows, wherever the tokens cut it."""

from __future__ import annotations

from collections.abc import Sequence

from quantcli.core.errors import UsageError


class StopStrings:
    """Holds back what may be the beginning of a stop string; `found` is the one that came.

    Raises:
        UsageError: for an empty string, which every text contains.
    """

    def __init__(self, strings: Sequence[str] = ()) -> None:
        if "" in strings:
            raise UsageError("a stop string is empty: it would end every answer before it begins")
        self.strings = tuple(strings)
        self.found: str | None = None
        self._held = ""

    def push(self, piece: str) -> str:
        """The text that can be shown now that `piece` has come; what follows a stop string never is."""
        text = self._held + piece
        places = [(place, string) for string in self.strings if (place := text.find(string)) >= 0]
        if places:
            place, self.found = min(places)
            self._held = ""
            return text[:place]
        held = max((_overlap(text, string) for string in self.strings), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back, at the end of an answer."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """The length of the longest end of `text` that `string` begins with."""
    longest = min(len(text), len(string) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(string[:length])), 0)
