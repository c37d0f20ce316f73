"""Stop strings, found in a stream of text even where they span tokens."""

from __future__ import annotations

from collections.abc import Sequence

from quantcli.core.errors import UsageError


class StopStrings:
    """Looks for stop strings. Text that may be the beginning of one is held back. `found` is the stop string found.

    Raises:
        UsageError: for an empty stop string.
    """

    def __init__(self, strings: Sequence[str] = ()) -> None:
        if "" in strings:
            raise UsageError("a stop string is empty: it would end every answer at once")
        self.strings = tuple(strings)
        self.found: str | None = None
        self._held = ""

    def push(self, piece: str) -> str:
        """Append `piece`, and return the text that can be shown now. A stop string and what follows it never is."""
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
        """The text held back, at the end of the answer."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """The length of the longest suffix of `text` that is a proper prefix of `string`."""
    longest = min(len(text), len(string) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(string[:length])), 0)
