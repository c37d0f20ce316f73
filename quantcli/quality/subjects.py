"""The built-in texts for an evaluation by subject. Quantization hurts subjects differently.

`texts/subjects/README.md` says where they come from. No calibration text shares a passage with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Final


@dataclass(frozen=True)
class Subject:
    """A built-in text: the file `texts/subjects/NAME.txt`.

    by_quarter   whether the text is scored by position in the context: one document, from beginning to end
    """

    name: str
    title: str
    by_quarter: bool = False

    @property
    def text(self) -> str:
        """The text, without the final newline."""
        place = files("quantcli.quality").joinpath("texts", "subjects", f"{self.name}.txt")
        return place.read_bytes().decode().removesuffix("\n")


SUBJECTS: Final = (
    Subject("prose", "everyday prose"),
    Subject("encyclopedia", "encyclopedia"),
    Subject("law", "law"),
    Subject("fiction", "fiction and verse"),
    Subject("code", "code"),
    Subject("mathematics", "mathematics and reasoning"),
    Subject("tools", "tool calls and JSON"),
    Subject("dialogue", "dialogue"),
    Subject("chinese", "Chinese"),
    Subject("russian", "Russian"),
    Subject("hindi", "Hindi"),
    Subject("long", "long document", by_quarter=True),
)
