"""The one error tree. `quantcli.cli.main` turns it into a line and an exit status; nothing else does.

    QuantcliError
    |-- UsageError             the request itself is wrong: unknown type, contradictory options    (exit status 2)
    |-- FormatError            a file is not what it claims to be: missing, truncated, corrupt, foreign
    |   `-- UnsafePickleError  a PyTorch file asks for a global that no state dict needs
    |-- UnsupportedError       a sound file that asks for something quantcli does not do
    |-- HubError               the hub does not give a model: none of that name, no access, no answer, damaged on the way
    |-- ModelError             a checkpoint that contradicts itself: tensors missing, shapes off, no tokenizer
    |-- ValueRangeError        numbers that cannot be used: NaN weights, a negative importance
    |-- OutputError            the result cannot be written: it exists, the disk is full, no permission
    `-- GenerationError        a model that was read cannot answer: prompt longer than the context, broken template

Kernels stand below this floor and raise `ValueError` for a caller's mistake.

`warn` is for what the user should know although the work goes on. It is Python's own `warnings`: a program filters
`QuantcliWarning` as it likes, and the command line shows each as a line.
"""

from __future__ import annotations

import warnings
from os import PathLike, fspath
from typing import ClassVar


def clipped(text: str, most: int = 200) -> str:
    """The text for an error's line, cut where a file made it long."""
    return text if len(text) <= most else text[: most - 3] + "..."


def shown(value: object) -> str:
    """A value as an error's line shows it."""
    return clipped(repr(value), 60)


def one_line(error: BaseException) -> str:
    """What another library's error says, as a part of an error's line."""
    return clipped(" ".join(str(error).split()))


class QuantcliWarning(UserWarning):
    """Something in a model or a request that may not be what the user wants."""


def warn(message: str) -> None:
    """Issue a `QuantcliWarning`. `message` is one line that names the file or tensor it is about."""
    warnings.warn(message, QuantcliWarning, stacklevel=3)


class QuantcliError(Exception):
    """Base of every error quantcli raises on purpose.

    `message` is one line that names the thing at fault; `hint`, where there is one, says what to do about it.
    """

    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(QuantcliError):
    """The request is wrong before any file is looked at."""

    exit_status: ClassVar[int] = 2


class FormatError(QuantcliError):
    """A file is not what it claims to be.

    The message reads `FILE: WHAT (at byte OFFSET)`; `path` and `offset` keep the two for callers.
    """

    def __init__(
        self, path: str | PathLike[str], what: str, *, offset: int | None = None, hint: str | None = None
    ) -> None:
        place = "" if offset is None else f" (at byte {offset})"
        super().__init__(f"{fspath(path)}: {what}{place}", hint=hint)
        self.path = fspath(path)
        self.offset = offset


class UnsafePickleError(FormatError):
    """A pickle names a global outside the short list that a state dict needs. Nothing was executed."""


class UnsupportedError(QuantcliError):
    """The input is sound, and quantcli does not handle it."""


class HubError(QuantcliError):
    """The Hugging Face hub does not give a model: there is none, no access, no answer, or it arrives damaged."""


class ModelError(QuantcliError):
    """The parts of a checkpoint contradict each other or are incomplete."""


class ValueRangeError(QuantcliError):
    """Numbers that no quantization can represent or use."""


class OutputError(QuantcliError):
    """The result cannot be written where it was asked for."""


class GenerationError(QuantcliError):
    """A loaded model cannot do what was asked of it."""
