"""Reads texts from files, standard input and the command line."""

from __future__ import annotations

import codecs
import sys
from pathlib import Path
from typing import Final

from quantcli.core.errors import UsageError

_OTHER_MARKS: Final = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
"""Byte order marks of unsupported encodings. UTF-32 comes first, because its mark begins with that of UTF-16."""


def read_text(file: Path | None, what: str) -> str:
    """The text of a file, or of stdin for None, without a leading byte order mark and the final newline.

    Everything else is part of the text, as in llama.cpp, carriage returns too.

    Raises:
        UsageError: if it is not UTF-8.
    """
    data = sys.stdin.buffer.read() if file is None else file.read_bytes()
    place = "stdin" if file is None else str(file)
    for encoding, marks in _OTHER_MARKS.items():
        if data.startswith(marks):
            raise UsageError(f"{place}: {what} is {encoding}, expected UTF-8", hint=f"iconv -f {encoding} -t UTF-8")
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        start = error.start + len(data) - len(data.removeprefix(codecs.BOM_UTF8))
        raise UsageError(f"{place}: {what} is not UTF-8 (byte {start})") from error


def lines(text: str) -> list[str]:
    """The lines of a text without their ends, LF or CR LF. Nothing else ends a line."""
    return [line.removesuffix("\r") for line in text.split("\n")]


def checked_text(text: str, what: str) -> str:
    """A text from the command line. Raises UsageError if it is not UTF-8."""
    if any("\ud800" <= mark <= "\udfff" for mark in text):
        raise UsageError(f"{what} is not UTF-8")
    return text
