"""The one error tree. `quantcli.cli.main` turns it into a line and an exit status; nothing else does.

    QuantcliError
    |-- UsageError             the request is wrong: unknown type, contradictory options    (exit status 2)
    |-- FormatError            a file is missing, truncated, corrupt, or of another format
    |   `-- UnsafePickleError  a PyTorch file asks for a global that no state dict needs
    |-- UnsupportedError       a valid file that needs something quantcli does not support
    |-- HubError               the hub does not provide a model: unknown name, no access, no answer, damaged download
    |-- ModelError             a checkpoint is inconsistent: missing tensors, wrong shapes, no tokenizer
    |-- ValueRangeError        numbers that cannot be used: NaN weights, a negative importance
    |-- OutputError            the result cannot be written: it exists, the disk is full, no permission
    `-- GenerationError        a loaded model cannot generate: prompt longer than the context, broken template

Kernels are below this module and raise `ValueError` for a caller's mistake.

`warn` reports something that the user should know although the work goes on. It uses Python's `warnings`: a program can
filter `QuantcliWarning`, and the command line shows each as a line.
"""

from __future__ import annotations

import warnings
from os import PathLike, fspath
from typing import Any, ClassVar


def clipped(text: str, most: int = 200) -> str:
    """A string for an error message, cut to `most` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."


def shown(value: object) -> str:
    """The `repr` of a value for an error message, cut to 60 characters."""
    return clipped(repr(value), 60)


def one_line(error: BaseException) -> str:
    """The message of another library's error, in one line for an error message."""
    return clipped(" ".join(str(error).split()))


class QuantcliWarning(UserWarning):
    """A model or a request that may not be what the user wants."""


def warn(message: str) -> None:
    """Issue a `QuantcliWarning`. `message` is one line that names the file or tensor it is about."""
    warnings.warn(message, QuantcliWarning, stacklevel=3)


class QuantcliError(Exception):
    """Base of every error quantcli raises on purpose.

    message   one line that names the file, tensor or option at fault
    hint      what to do about it, or None
    """

    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are pickled as a call of their class with `args`, which is not how subclasses are made.
        return _unpickled, (type(self), self.args, self.__dict__)


def _unpickled(kind: type[QuantcliError], arguments: tuple[Any, ...], attributes: dict[str, Any]) -> QuantcliError:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(attributes)
    return error


class UsageError(QuantcliError):
    """The request itself is wrong."""

    exit_status: ClassVar[int] = 2


class FormatError(QuantcliError):
    """A file is missing, truncated, corrupt, or of another format.

    The message is `FILE: WHAT (at byte OFFSET)`. `path` and `offset` are attributes too.
    """

    def __init__(
        self, path: str | PathLike[str], what: str, *, offset: int | None = None, hint: str | None = None
    ) -> None:
        place = "" if offset is None else f" (at byte {offset})"
        super().__init__(f"{fspath(path)}: {what}{place}", hint=hint)
        self.path = fspath(path)
        self.offset = offset


class UnsafePickleError(FormatError):
    """A pickle names a global that no state dict needs. Nothing was executed."""


class UnsupportedError(QuantcliError):
    """The input is valid, but quantcli does not support it."""


class HubError(QuantcliError):
    """The Hugging Face hub does not provide a model: unknown name, no access, no answer, or a damaged download."""


class ModelError(QuantcliError):
    """A checkpoint is inconsistent or incomplete."""


class ValueRangeError(QuantcliError):
    """Numbers that cannot be quantized or used."""


class OutputError(QuantcliError):
    """The result cannot be written to the requested path."""


class GenerationError(QuantcliError):
    """A loaded model cannot generate."""
